"""S3, and what passes for its answers."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from botocore import handlers, parsers
from twisted.internet import reactor

from pcapsvc.core.errors import DestinationError
from tests.unit.contents import make_artifact
from tests.unit.s3_case import S3Case, md5_tag
from tests.unit.test_s3_bad_peers import BadPeer

PAGE = b"<html><body>Welcome to the hotel. Please log in.</body></html>"
OTHER_TAG = '"5e2f-5a3b1c"'
_NO_OBJECT = b"<Error><Code>NoSuchBucket</Code><Message>gone</Message></Error>"


class ProofTests(S3Case):
    """A capture is delivered if the service proves that it has it, and not otherwise."""

    timeout = 300

    async def stored(self) -> None:
        await self.make().store(make_artifact(self.content))
        self.assertTrue(self.content.all_closed)

    async def unproven(self, words: str) -> None:
        error = await self.refused()
        self.assertTrue(error.retryable)
        self.assertIn(words, str(error))

    async def test_captive_portal(self) -> None:
        """A page in place of S3 is a failure, even with an ETag of its own."""
        self.server.answer = lambda: (200, PAGE)
        self.server.etag = None
        await self.unproven("answered 200 without an ETag")
        self.server.etag = lambda body: OTHER_TAG
        self.server.head = lambda: (200, {"ETag": OTHER_TAG, "Content-Length": str(len(PAGE))})
        await self.unproven("HeadObject finds another object")

    async def test_page_that_is_not_xml(self) -> None:
        """So is one that can't be parsed."""
        self.server.etag = None
        self.server.answer = lambda: (200, b"<html><br>")
        self.assertTrue((await self.refused()).retryable)

    async def test_declarations(self) -> None:
        """
        XML that declares entities or attributes is not S3's, and isn't parsed: 60 KB of it may take seconds.
        """
        await self.stored()
        for module in (handlers, parsers):
            self.patch(module, "ETree", None)
        for declared in ('ENTITY e "<a/>"', 'ATTLIST e a CDATA ""'):
            body = f"<!DOCTYPE e [<!{declared}>]><Error><Code>AccessDenied</Code></Error>".encode()
            for status in (200, 403):
                self.server.answer, self.server.etag = lambda: (status, body), None  # noqa: B023 - called here
                error = await self.refused()
                self.assertTrue(error.retryable)
                self.assertIn("declares", str(error))

    async def test_portal_redirects(self) -> None:
        """The redirect of a portal, which has no code of S3, is worth another attempt."""
        for status in (302, 303, 307, 511):
            self.server.headers = {"Location": "http://login.invalid/"}
            self.server.answer = lambda status=status: (status, PAGE)
            self.assertTrue((await self.refused()).retryable, status)

    async def test_no_entity_tag(self) -> None:
        """An empty answer without a valid ETag proves nothing."""
        for tag in (None, "", '""', "a b", 'a"b', '"'):
            self.server.etag = None if tag is None else lambda body, tag=tag: tag
            await self.unproven("without an ETag")

    async def test_md5(self) -> None:
        """The MD5 of the capture is a proof, however it is written."""
        for form in (md5_tag, lambda body: md5_tag(body).upper(), lambda body: md5_tag(body).strip('"')):
            self.server.etag = form
            await self.stored()
        self.assertEqual(self.server.heads, 0)

    async def test_other_bytes(self) -> None:
        """The MD5 of other bytes is not."""
        self.server.etag = lambda body: md5_tag(body[:-1])
        size = str(self.content.size - 1)
        self.server.head = lambda: (
            200,
            {"ETag": md5_tag(self.server.requests[0][2][:-1]), "Content-Length": size},
        )
        await self.unproven("HeadObject finds another object")

    async def test_kms(self) -> None:
        """If KMS encrypts the object, its ETag is not the MD5."""
        self.server.etag = lambda body: md5_tag(b"encrypted")
        for algorithm in ("aws:kms", "aws:kms:dsse"):
            self.server.headers = {"x-amz-server-side-encryption": algorithm}
            await self.stored()
        self.assertEqual(self.server.heads, 0)

    async def test_other_entity_tags(self) -> None:
        """If the service has other ETags, the object itself is a proof."""
        self.server.etag = lambda body: OTHER_TAG
        self.server.head = lambda: (200, {"ETag": OTHER_TAG, "Content-Length": str(self.content.size)})
        await self.stored()
        self.server.head = lambda: (403, {})
        await self.unproven("HeadObject is answered 403")


class InterimResponseTests(S3Case):
    """Interim responses decide nothing (RFC 9110, section 15.2)."""

    timeout = 300
    received = 0

    async def answers(self, before: bytes, after: Callable[[bytes], bytes]) -> Any:
        """What becomes of a capture if a server sends something before the body, and after it."""

        def speak(connection: socket.socket) -> None:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += connection.recv(1)
            connection.sendall(before)
            body = b""
            while len(body) < self.content.size and (data := connection.recv(65536)):
                body += data
            self.received = len(body)
            connection.sendall(after(body))
            connection.shutdown(socket.SHUT_WR)

        peer = BadPeer(speak)
        self.addCleanup(peer.stop)
        storing = self.make().store(make_artifact(self.content, endpoint=peer.endpoint))
        return await storing.addTimeout(20, reactor)

    async def test_error_afterwards(self) -> None:
        """What follows an interim response is what counts."""
        failed = b"HTTP/1.1 404 No\r\nContent-Length: %d\r\n\r\n%b" % (len(_NO_OBJECT), _NO_OBJECT)
        for interim in (b"102 Processing", b"103 Early Hints\r\nLink: </a.css>", b"199 x"):
            line = b"HTTP/1.1 " + interim + b"\r\n\r\n"
            for before, between in ((line, b""), (b"HTTP/1.1 100 Continue\r\n\r\n", line)):
                with self.assertRaises(DestinationError) as raised:
                    await self.answers(before, lambda body, between=between: between + failed)
                self.assertIn("NoSuchBucket: gone", str(raised.exception))
                self.assertFalse(raised.exception.retryable)

    async def test_success_afterwards(self) -> None:
        """So a capture can be delivered by way of them."""
        for before in (b"102 Processing", b"103 Early Hints\r\nLink: </a.css>", b"100 Continue"):
            for after in (b"", b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 x\r\nA: b\r\n\r\n"):
                await self.answers(
                    b"HTTP/1.1 " + before + b"\r\n\r\n",
                    lambda body, after=after: (
                        after
                        + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nETag: %b\r\n\r\n" % md5_tag(body).encode()
                    ),
                )

    async def test_nothing_afterwards(self) -> None:
        """An interim response alone is a failure."""
        with self.assertRaises(DestinationError) as raised:
            await self.answers(b"HTTP/1.1 103 x\r\n\r\n", lambda body: b"HTTP/1.1 102 x\r\n\r\n")
        self.assertTrue(raised.exception.retryable)
