"""Captures to CloudShark, with a server in the same process."""

from __future__ import annotations

import gc
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from twisted.internet import defer, reactor
from twisted.internet.protocol import Protocol
from twisted.internet.task import Cooperator, deferLater
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http import Request
from twisted.web.server import NOT_DONE_YET
from zope.interface.verify import verifyObject

from pcapsvc.core.errors import DestinationError
from pcapsvc.destinations.cloudshark.destination import CloudShark
from pcapsvc.destinations.cloudshark.form import Form
from pcapsvc.interfaces.delivery import IDestination
from pcapsvc.testing import run_now
from tests.unit.cloudshark_case import TOKEN, TOKEN_IN_URL, CloudSharkCase, QuietSite, Ssh, refusal
from tests.unit.contents import MemfdContent, make_artifact


class FormTests(SynchronousTestCase):
    """L{Form}."""

    def test_resumed_after_the_capture(self) -> None:
        """The connection pauses the form with the end of the capture, and resumes it before what follows."""
        content = MemfdContent(b"packets")
        self.addCleanup(content.close)
        steps: list[Callable[[], object]] = []
        one_at_a_time = Cooperator(lambda: lambda: True, steps.append)
        form = Form(make_artifact(content), run_in_thread=run_now, cooperator=one_at_a_time)
        self.addCleanup(form.close)
        sent = bytearray()

        def write(data: bytes) -> None:
            sent.extend(data)
            if data == b"packets":
                form.pauseProducing()

        done = form.startProducing(SimpleNamespace(write=write))
        while not form.has_sent_file:
            steps.pop(0)()
        form.resumeProducing()
        self.assertNoResult(done)
        while steps:
            steps.pop(0)()
        self.successResultOf(done)
        self.assertEqual(len(sent), form.length)


class CloudSharkTests(CloudSharkCase):
    """L{CloudShark}."""

    def test_interface(self) -> None:
        """It is a destination, called cloudshark, and its repr says nothing."""
        destination = self.make()
        self.assertTrue(verifyObject(IDestination, destination))
        self.assertEqual([destination.route({"endpoint": "x"})], list(destination.routes))
        self.assertEqual(
            [str(problem) for problem in destination.check({"bucket": "b"})], ["bucket: is not a known key"]
        )
        self.assertEqual(destination.name, "cloudshark")
        self.assertNoToken(repr(destination))

    async def test_upload(self) -> None:
        """A capture is uploaded as the API requires, with its length in the header."""
        artifact = make_artifact(self.content, name="a.pcap", tags="customer:Zoë,node:web1")
        receipt = await self.make().store(artifact)
        base = f"http://127.0.0.1:{self.port.getHost().port}"
        self.assertEqual((receipt.destination, receipt.location), ("cloudshark", f"{base}/captures/f00"))
        [request] = self.server.requests
        self.assertEqual(request.method, b"POST")
        self.assertEqual(request.uri, b"/api/v1/" + TOKEN_IN_URL + b"/upload")
        self.assertEqual(request.getHeader("host"), base.removeprefix("http://"))
        self.assertEqual(set(self.server.parts), {"file", "additional_tags"})
        file = self.server.parts["file"]
        self.assertEqual((file.filename, file.content_type), ("a.pcap", "application/octet-stream"))
        with self.content.open() as reader:
            self.assertEqual(file.raw, reader.read())
        self.assertEqual(self.server.parts["additional_tags"].value, "customer:Zoë,node:web1")
        self.assertTrue(self.content.all_closed)
        self.assertNoToken(receipt.location)

    async def test_side_by_side(self) -> None:
        """Uploads at once share nothing."""
        destination = self.make()
        receipts = await defer.gatherResults(
            [destination.store(make_artifact(self.content, name=f"{n}.pcap")) for n in range(5)]
        )
        self.assertEqual(len(receipts), 5)

    async def test_id_within_link(self) -> None:
        """The id may be a number."""
        for id, shown in ((17, "17"), ("0a-B_9", "0a-B_9")):
            self.server.answer = lambda request, id=id: {"filename": "x", "id": id}
            receipt = await self.make().store(make_artifact(self.content))
            self.assertEqual(receipt.location.rpartition("/captures/")[2], shown)

    async def test_refusal(self) -> None:
        """An error tells what the server says, on one line, without the token."""
        self.server.answer = refusal(401, "Bad\r\n\x1b[31mtoken " + TOKEN, "s3cr3t%2fTo%25ken%20%2b%c3%bc", 3)
        error = await self.refused()
        self.assertFalse(error.retryable)
        self.assertTrue(str(error).endswith("answered 401: Bad [31mtoken [token]; [token]; 3"), str(error))

    async def test_long_refusal(self) -> None:
        """Its words are shortened."""
        self.server.answer = refusal(400, "x" * 5000)
        self.assertLess(len(str(await self.refused())), 400)

    async def test_retryable(self) -> None:
        """Answers that may pass may be tried again; others not."""
        for code in (408, 423, 425, 429, 500, 502, 503, 599):
            self.server.answer = refusal(code, "no")
            self.assertTrue((await self.refused()).retryable)
        for code in (400, 403, 404, 413, 501, 505, 301, 201):
            self.server.answer = refusal(code, "no")
            self.assertFalse((await self.refused()).retryable)

    async def test_asked_to_wait(self) -> None:
        """If the server asks us to wait, the error says for how long."""

        def answer(request: Request) -> Any:
            request.setHeader("retry-after", "17")
            return refusal(429, "no")(request)

        self.server.answer = answer
        self.assertEqual((await self.refused()).retry_after_seconds, 17.0)
        self.server.answer = refusal(429, "no")
        self.assertIsNone((await self.refused()).retry_after_seconds)

    async def test_no_redirect(self) -> None:
        """A redirect is not followed."""

        def answer(request: Request) -> bytes:
            request.setResponseCode(307)
            request.setHeader("location", f"http://127.0.0.1:{self.port.getHost().port}/elsewhere")
            return b""

        self.server.answer = answer
        error = await self.refused()
        self.assertIn("answered 307: a redirect, which is not followed", str(error))
        self.assertTrue(error.retryable)
        self.assertEqual(len(self.server.requests), 1)

    async def test_answers_that_are_none(self) -> None:
        """200 with no id is a failure, whatever else comes with it."""
        ids = (
            "null",
            "true",
            '""',
            "0",
            "-5",
            "1.5",
            '" "',
            '"a b"',
            '"a/b"',
            r'"a\u0000\n<script>"',
            '"a\u00e9"',
        )
        for body in (b"", b"<html>", b"[]", b"[" * 50000, *(f'{{"id": {id}}}'.encode() for id in ids)):
            self.server.answer = lambda request, body=body: body
            error = await self.refused()
            self.assertIn("answered 200: without the id of a capture", str(error))
            # Such as the login page of a captive portal, which goes away.
            self.assertTrue(error.retryable)

    async def test_id_beside_an_error(self) -> None:
        """An id counts only if the answer says nothing of an error."""
        for beside, words, retryable in (
            ({"exceptions": ["quota"]}, "answered 200: quota", False),
            ({"exceptions": "quota", "status": 500}, "answered 200: quota", False),
            ({"status": 500}, "answered 200: with the status 500", True),
            ({"status": "403"}, "answered 200: with the status 403", True),
        ):
            self.server.answer = lambda request, beside=beside: {"filename": "x", "id": "f00", **beside}
            error = await self.refused()
            self.assertTrue(str(error).endswith(words), str(error))
            self.assertEqual(error.retryable, retryable)
        for beside in ({"exceptions": []}, {"exceptions": None, "status": 200}, {"status": "ok"}):
            self.server.answer = lambda request, beside=beside: {"filename": "x", "id": "f00", **beside}
            await self.make().store(make_artifact(self.content))

    async def test_endless_answer(self) -> None:
        """No more of an answer is read than an answer can have."""

        def answer(request: Request) -> int:
            request.write(b"x" * 65536)
            return NOT_DONE_YET

        self.server.answer = answer
        self.assertIn("without the id of a capture", str(await self.refused()))

    async def test_endless_headers(self) -> None:
        """Nor of its headers, and of what comes before it."""
        for start, more, problem in (
            (b"HTTP/1.1 200 OK\r\n", b"X: " + b"y" * 1000 + b"\r\n", "longer than 16384 bytes"),
            (b"", b"HTTP/1.1 100 Continue\r\n\r\n", "more than 10 interim responses"),
        ):

            class Chatterbox(Protocol):
                written = 0

                def dataReceived(self, data: bytes) -> None:
                    if not self.written:
                        self.transport.write(start)  # type: ignore[union-attr]  # noqa: B023
                        self.transport.registerProducer(self, False)  # type: ignore[union-attr]

                def resumeProducing(self) -> None:
                    block = more * 100  # noqa: B023
                    self.written += len(block)
                    self.transport.write(block)  # type: ignore[union-attr]

                def stopProducing(self) -> None:
                    pass

            error = await self.refused(port=self.listen(Chatterbox))
            self.assertTrue(error.retryable)
            self.assertIn(problem, str(error))
            [connection] = self.connections
            self.assertLess(connection.written, 50_000_000)  # type: ignore[attr-defined]

    async def test_timeout_of_the_answer(self) -> None:
        """An answer that does not come is a time-out."""
        self.server.answer = lambda request: NOT_DONE_YET
        error = await self.refused(timeout_seconds=0.2)
        self.assertTrue(error.retryable)
        self.assertIn("timed out after 0.2 s", str(error))

    async def test_timeout_of_the_body(self) -> None:
        """So is an answer that begins, and does not end."""

        def answer(request: Request) -> int:
            request.write(b'{"id":')
            return NOT_DONE_YET

        self.server.answer = answer
        self.assertIn("timed out after", str(await self.refused(timeout_seconds=0.2)))

    async def test_cancel(self) -> None:
        """On cancel the connection is ended, and the content closed."""
        gone: defer.Deferred[Any] = defer.Deferred()

        def answer(request: Request) -> int:
            request.notifyFinish().addBoth(lambda _: gone.callback(None))
            stored.cancel()
            return NOT_DONE_YET

        self.server.answer = answer
        stored = self.make().store(make_artifact(self.content))
        await self.assertFailure(stored, defer.CancelledError)
        self.assertTrue(self.content.all_closed)
        await gone

    async def test_cancel_while_sending(self) -> None:
        """So is it if the server has not read all of it yet."""

        class Deaf(Protocol):
            lost: defer.Deferred[Any]

            def connectionMade(self) -> None:
                self.lost = defer.Deferred()

            def dataReceived(self, data: bytes) -> None:
                self.transport.pauseProducing()  # type: ignore[union-attr]
                reactor.callLater(0, stored.cancel)
                reactor.callLater(0.05, self.transport.resumeProducing)  # type: ignore[union-attr]

            def connectionLost(self, reason: object = None) -> None:
                self.lost.callback(None)

        content = MemfdContent(zeros=50_000_000)
        self.addCleanup(content.close)
        stored = self.make(port=self.listen(Deaf)).store(make_artifact(content))
        await self.assertFailure(stored, defer.CancelledError)
        self.assertTrue(content.all_closed)
        await self.connections[0].lost  # type: ignore[attr-defined]

    async def test_cancel_at_once(self) -> None:
        """So is it before there is a connection."""
        stored = self.make().store(make_artifact(self.content))
        stored.cancel()
        await self.assertFailure(stored, defer.CancelledError)
        self.assertTrue(self.content.all_closed)

    async def test_early_answer(self) -> None:
        """
        An answer before the upload is through is an answer; what nobody reads is not
        sent any further, though the server keeps the connection.
        """

        class Hasty(Protocol):
            received = 0
            lost: defer.Deferred[Any]

            def connectionMade(self) -> None:
                self.lost = defer.Deferred()

            def dataReceived(self, data: bytes) -> None:
                if not self.received:
                    body = b'{"status": 413, "exceptions": ["Too large"]}'
                    self.transport.write(  # type: ignore[union-attr]
                        b"HTTP/1.1 413 No\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
                    )
                self.received += len(data)

            def connectionLost(self, reason: object = None) -> None:
                self.lost.callback(None)

        content = MemfdContent(zeros=200_000_000)
        self.addCleanup(content.close)
        stored = self.make(port=self.listen(Hasty)).store(make_artifact(content))
        error = await self.assertFailure(stored, DestinationError)
        self.assertIn("answered 413: Too large", str(error))
        [connection] = self.connections
        await connection.lost  # type: ignore[attr-defined]
        self.assertLess(connection.received, 50_000_000)  # type: ignore[attr-defined]
        self.assertTrue(content.all_closed)

    async def test_early_success(self) -> None:
        """The id of a capture proves nothing if the server has not read all of it."""

        class Hasty(Protocol):
            def dataReceived(self, data: bytes) -> None:
                body = b'{"filename": "x", "id": "f00"}'
                self.transport.write(  # type: ignore[union-attr]
                    b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
                )
                self.transport.pauseProducing()  # type: ignore[union-attr]

        content = MemfdContent(zeros=50_000_000)
        self.addCleanup(content.close)
        stored = self.make(port=self.listen(Hasty)).store(make_artifact(content))
        error = await self.assertFailure(stored, DestinationError)
        self.assertIn("answered 200 before it had the whole capture", str(error))
        self.assertTrue(error.retryable)
        self.connections[0].transport.abortConnection()  # type: ignore[union-attr]

    async def test_interim_responses(self) -> None:
        """What follows an interim response is the answer."""

        class Hinting(Protocol):
            received = b""

            def dataReceived(self, data: bytes) -> None:
                self.received += data
                if self.received.endswith(b"--\r\n"):
                    self.transport.write(  # type: ignore[union-attr]
                        b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
                        b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"
                    )

        self.assertIn("answered 500", str(await self.refused(port=self.listen(Hinting))))

    async def test_reset(self) -> None:
        """A connection that is reset may be tried again."""

        class Resetting(Protocol):
            def dataReceived(self, data: bytes) -> None:
                self.transport.abortConnection()  # type: ignore[union-attr]

        self.assertTrue((await self.refused(port=self.listen(Resetting))).retryable)

    async def test_no_http(self) -> None:
        """
        If the server speaks another protocol, the delivery fails, even without a time-out. (The agent
        doesn't handle that itself, and logs an error.)
        """
        await self.refused(port=self.listen(Ssh), timeout_seconds=None)
        await deferLater(reactor, 0.01)
        gc.collect()
        for failure in self.flushLoggedErrors():
            self.assertNoToken(failure.getTraceback())

    async def test_refused(self) -> None:
        """A refused connection is retryable."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            error = await self.refused(port=free.getsockname()[1])
        self.assertTrue(error.retryable)
        self.assertIn("refused", str(error))

    async def test_unknown_host(self) -> None:
        """So may a name that is not found."""
        error = await self.refused(host="nowhere.invalid")
        self.assertTrue(error.retryable)
        self.assertIn("nowhere.invalid", str(error))

    async def test_no_tls(self) -> None:
        """TLS with a server that does not speak it tells so."""
        self.assertIn("TLS: ", str(await self.refused(scheme="https", port=self.listen(Ssh))))

    async def test_unusable_certificates(self) -> None:
        """If the file of certificates is missing or empty, the error names its path."""
        empty = self.mktemp()
        with open(empty, "w") as file:
            file.write("-----BEGIN CERTIFICATE-----\nnothing\n-----END CERTIFICATE-----\n")
        for path in ("/nowhere/ca.pem", empty, "/dev/null"):
            error = await self.refused(scheme="https", verify=path)
            self.assertFalse(error.retryable)
            self.assertIn(path, str(error))

    async def test_content_that_is_gone(self) -> None:
        """A content that can't be opened is an error as any other."""
        gone = MemfdContent(b"x")
        gone.close()
        await self.assertFailure(self.make().store(make_artifact(gone)), DestinationError)


class Ipv6CloudSharkTests(CloudSharkCase):
    """L{CloudShark} with an address of IPv6."""

    async def test_upload(self) -> None:
        """The address is put in brackets where it belongs."""
        port = reactor.listenTCP(0, QuietSite(self.server), interface="::1")
        self.addCleanup(port.stopListening)
        number = port.getHost().port
        for host in ("::1", "[::1]"):
            receipt = await self.make(host=host, port=number).store(make_artifact(self.content))
            self.assertEqual(receipt.location, f"http://[::1]:{number}/captures/f00")
            self.assertEqual(self.server.requests[-1].getHeader("host"), f"[::1]:{number}")


class AddressTests(SynchronousTestCase):
    """The address of the server, as it is shown."""

    def test_usual_port(self) -> None:
        """The usual port of a scheme is not shown, any other is."""
        for scheme, port, address in (
            ("https", 443, "https://192.0.2.1"),
            ("http", 80, "http://192.0.2.1"),
            ("https", 80, "https://192.0.2.1:80"),
        ):
            memory_reactor = MemoryReactorClock()
            destination = CloudShark(
                memory_reactor,
                run_in_thread=run_now,
                scheme=scheme,
                host="192.0.2.1",
                port=port,
                token="t",
                timeout_seconds=1,
            )
            content = MemfdContent(b"")
            self.addCleanup(content.close)
            stored = destination.store(make_artifact(content))
            memory_reactor.advance(1)
            error = self.failureResultOf(stored, DestinationError).value
            self.assertEqual(str(error), f"{address}: timed out after 1 s")
