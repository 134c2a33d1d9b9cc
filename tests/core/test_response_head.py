"""The heads of HTTP/1 responses."""

from __future__ import annotations

import tracemalloc

from twisted.trial import unittest

from pcapsvc.core.response_head import (
    MAX_HEAD_BYTES,
    MAX_HEAD_LINES,
    MAX_INTERIM,
    FinalResponse,
    UnusableResponse,
)

EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </page.css>\r\n\r\n"
FINAL = b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nhi"


def passed_on(*pieces: bytes) -> bytes:
    """What is passed on of what arrives."""
    response = FinalResponse()
    return b"".join(map(response.receive, pieces))


class FinalResponseTests(unittest.SynchronousTestCase):
    """L{FinalResponse}."""

    def test_final(self) -> None:
        """The final response is passed on as it is, from its first byte on, however it is divided."""
        for size in (1, 2, 3, 7, len(FINAL)):
            pieces = [FINAL[start : start + size] for start in range(0, len(FINAL), size)]
            self.assertEqual(passed_on(*pieces), FINAL)

    def test_whole_head(self) -> None:
        """Nothing is passed on until the head is whole."""
        self.assertEqual(passed_on(FINAL[: FINAL.index(b"hi") - 1]), b"")

    def test_lines(self) -> None:
        """A line may end without a carriage return, and a status line without a reason."""
        for head in (b"HTTP/1.0 204\n\n", b"HTTP/1.1 204 \r\n\r\n", b"HTTP/1.1 204 No \xff\r\n\n"):
            self.assertEqual(passed_on(head), head)

    def test_interim(self) -> None:
        """Interim responses are left out, up to ten of them."""
        self.assertEqual(passed_on(EARLY * MAX_INTERIM + FINAL), FINAL)
        self.assertEqual(passed_on(*(bytes([byte]) for byte in EARLY + FINAL)), FINAL)
        with self.assertRaisesRegex(UnusableResponse, "more than 10 interim responses"):
            passed_on(EARLY * (MAX_INTERIM + 1))

    def test_no_response(self) -> None:
        """Anything else than a status line of HTTP/1 is an error at once, and is not repeated."""
        for line in (
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"\x15\x03\x01",
            b"ICY 200 OK\r\n",
            b"HTTP/2 200\r\n",
            b"FTP/1.1 201 OK\r\n",
            b"HTTP/1.10 201 OK\r\n",
            b"HTTP/1.x 201 OK\r\n",
            b"HTTP/1.1  201 OK\r\n",
            b"HTTP/1.1 2_01 OK\r\n",
            b"HTTP/1.1 0201 OK\r\n",
            b"HTTP/1.1 +201 OK\r\n",
            b"HTTP/1.1 2010 OK\r\n",
            b"HTTP/1.1 201OK\r\n",
            b"HTTP/1.1 99 OK\r\n",
            "HTTP/1.1 ٢٠١ OK\r\n".encode(),
            b"\r\nHTTP/1.1 201 OK\r\n",
        ):
            with self.assertRaises(UnusableResponse) as caught:
                passed_on(line)
            self.assertEqual(str(caught.exception), "the server's answer is not an HTTP/1 response")

    def test_other_protocol(self) -> None:
        """101 is final, and what follows it is no HTTP."""
        with self.assertRaises(UnusableResponse) as caught:
            passed_on(b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + FINAL)
        self.assertEqual(str(caught.exception), "answered 101 (Switching Protocols), which was not requested")

    def test_memory(self) -> None:
        """What was passed on is not kept."""
        data = FINAL + b"x" * 100_000
        response = FinalResponse()
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        response.receive(data)
        self.assertLess(tracemalloc.get_traced_memory()[0], len(data) // 2)

    def test_long_heads(self) -> None:
        """Each head is bounded, in bytes and in lines, before its end as well as after it."""
        for status in (b"100 Continue", b"201 Created"):
            line = b"HTTP/1.1 " + status + b"\r\n"
            most = line + b"a:b\n" * (MAX_HEAD_LINES - 2)
            passed_on(most + b"\n")
            for end in (b"", b"\n\n"):
                with self.assertRaisesRegex(UnusableResponse, "lines"):
                    passed_on(most + b"a:b\na:b\n" + end)
                with self.assertRaisesRegex(UnusableResponse, "bytes"):
                    passed_on(line, b"a: " + b"b" * MAX_HEAD_BYTES + end)
