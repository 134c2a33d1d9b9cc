"""S3, and servers that hang, drip, flood or break off."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet import defer, reactor, task

from pcapsvc.core.errors import DestinationError
from pcapsvc.destinations.s3.destination import S3
from pcapsvc.destinations.s3.multipart import Sizes
from pcapsvc.net.names import MOST_ADDRESSES
from pcapsvc.threads import Threads
from tests.unit.contents import MemfdContent, PeakMemory, make_artifact
from tests.unit.s3_case import SECRET, S3Case


class BadPeer:
    """
    A server of one port that speaks as it likes.

    @param speak: is given each connection, in a thread of its own.
    """

    def __init__(self, speak: Callable[[socket.socket], None], **options: Any) -> None:
        self._speak = speak
        self._listening = socket.create_server(("127.0.0.1", 0), **options)
        self._open: list[socket.socket] = []
        self.endpoint = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.closed = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        """End it, and its connections."""
        self.closed.set()
        for one in (self._listening, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def drip(self, connection: socket.socket, data: bytes) -> None:
        """Send the same again and again, ten times a second."""
        while not self.closed.wait(0.1):
            connection.sendall(data)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self._open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self._speak(connection)


_PATIENCE_SECONDS = 180.0
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class BadPeerTests(S3Case):
    """L{S3}, and who means it harm, or has lost all sense."""

    timeout = 300

    def setUp(self) -> None:
        super().setUp()
        self.one_thread = Threads(reactor, most=1)
        self.one_thread.startService()
        self.addCleanup(self.one_thread.stopService)

    def peer(self, speak: Callable[[socket.socket], None], **options: Any) -> BadPeer:
        peer = BadPeer(speak, **options)
        self.addCleanup(peer.stop)
        return peer

    def destination(self, **changes: Any) -> S3:
        """With one thread for what requests name."""
        values = {"access_id": "AKIDEXAMPLE", "access_key": SECRET, "bucket": "captures", **changes}
        return S3(
            run_in_thread=self.threads.run,
            run_elsewhere=self.one_thread.run,
            endpoint=self.server.endpoint,
            **values,
        )

    async def ends(self, endpoint: str, content: MemfdContent | None = None) -> None:
        """An attempt is cut short within a connection: its thread is free at once."""
        artifact = make_artifact(content or self.content, endpoint=endpoint)
        destination = self.destination()
        # With all that is imported and made for the first.
        await destination.store(make_artifact(self.content, endpoint=self.server.endpoint + "/"))
        stored = destination.store(artifact)
        stored.addTimeout(0.7, reactor)
        await self.assertFailure(stored, defer.TimeoutError)
        await self.one_thread.run(lambda: None).addTimeout(_PATIENCE_SECONDS, reactor)
        self.assertTrue((content or self.content).all_closed)

    async def test_drips_before_the_body(self) -> None:
        """A byte now and then in place of "100 Continue"."""
        peer = self.peer(lambda connection: peer.drip(connection, b"H"))
        await self.ends(peer.endpoint)

    async def test_drips_headers(self) -> None:
        """A header now and then."""

        def speak(connection: socket.socket) -> None:
            connection.sendall(CONTINUE + b"HTTP/1.1 200 OK\r\n")
            peer.drip(connection, b"X: y\r\n")

        peer = self.peer(speak)
        await self.ends(peer.endpoint)

    async def test_drips_body(self) -> None:
        """A byte of the answer's body now and then."""

        def speak(connection: socket.socket) -> None:
            connection.sendall(CONTINUE + b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            peer.drip(connection, b"x")

        peer = self.peer(speak)
        await self.ends(peer.endpoint)

    async def test_reads_slowly(self) -> None:
        """The object is read, a little now and then."""

        def speak(connection: socket.socket) -> None:
            connection.sendall(CONTINUE)
            while not peer.closed.wait(0.1):
                connection.recv(1000)

        content = MemfdContent(zeros=20_000_000)
        self.addCleanup(content.close)
        peer = self.peer(speak)
        await self.ends(peer.endpoint, content)

    async def test_silent(self) -> None:
        """Nothing is said, neither in HTTP nor in TLS."""
        peer = self.peer(lambda connection: peer.drip(connection, b""))
        await self.ends(peer.endpoint)
        await self.ends(peer.endpoint.replace("http:", "https:"))

    async def test_not_accepted(self) -> None:
        """Connections are not even accepted."""
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
            waiting = [socket.socket() for _ in range(3)]
            for one in waiting:
                self.addCleanup(one.close)
                one.setblocking(False)
                one.connect_ex(full.getsockname())
            await self.ends(f"http://127.0.0.1:{full.getsockname()[1]}")

    async def test_ends_within_continue(self) -> None:
        """An end within the headers of "100 Continue" is an error, and nothing is tried for ever."""

        def speak(connection: socket.socket) -> None:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 100 Continue\r\n")
            connection.shutdown(socket.SHUT_WR)

        stored = self.destination().store(make_artifact(self.content, endpoint=self.peer(speak).endpoint))
        error = await self.assertFailure(stored.addTimeout(_PATIENCE_SECONDS, reactor), DestinationError)
        self.assertTrue(error.retryable)

    async def test_endless_answers(self) -> None:
        """No more of an answer is read than an answer can have: of its body, or of its headers."""
        for start, more in (
            (b"", b"x"),
            (CONTINUE[:-2], b"x"),
            (CONTINUE, CONTINUE),
            (CONTINUE + b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
            (CONTINUE + b"HTTP/1.1 500 No\r\nContent-Length: 400000000\r\n\r\n", b"<a>"),
            (CONTINUE + b"HTTP/1.1 200 No\r\nTransfer-Encoding: chunked\r\n\r\n", b"3\r\n<a>\r\n"),
        ):

            def speak(connection: socket.socket, start: bytes = start, more: bytes = more) -> None:
                connection.recv(65536)
                connection.sendall(start)
                block = more * 10000
                while True:
                    connection.sendall(block)

            peer = self.peer(speak)
            destination = self.destination()
            await destination.store(make_artifact(self.content))
            with PeakMemory() as memory:
                stored = destination.store(make_artifact(self.content, endpoint=peer.endpoint))
                error = await self.assertFailure(
                    stored.addTimeout(_PATIENCE_SECONDS, reactor), DestinationError
                )
            self.assertTrue(error.retryable)
            if more != b"X: y\r\n":
                # The HTTP client itself limits the number of headers.
                self.assertIn("an answer of more than 65536 bytes", str(error))
            self.assertLess(memory.grown_bytes, 32_000_000)
            peer.stop()

    async def failure_in_parts(
        self, speak: Callable[[socket.socket], None], seconds: float = _PATIENCE_SECONDS
    ) -> DestinationError:
        """Why a capture can't be uploaded in parts to a server that speaks like this, which may have some."""
        sizes = Sizes(single_bytes=1000, part_bytes=1 << 20)
        artifact = make_artifact(self.content, endpoint=self.peer(speak).endpoint)
        stored = self.destination(sizes=sizes).store(msgspec.structs.replace(artifact, may_be_there=True))
        error: DestinationError = await self.assertFailure(
            stored.addTimeout(seconds, reactor), DestinationError
        )
        return error

    async def test_endless_list(self) -> None:
        """What was wrong with the list of earlier uploads doesn't hide why the upload is refused."""
        methods: list[bytes] = []

        def speak(connection: socket.socket) -> None:
            method = connection.recv(65536).partition(b" ")[0]
            methods.append(method)
            if method == b"GET":
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 400000\r\n\r\n" + b"<a>" * 100_000)
            else:
                connection.sendall(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)

        error = await self.failure_in_parts(speak)
        self.assertEqual([b"GET", b"HEAD", b"POST"], methods)
        self.assertIn("403", str(error))
        self.assertFalse(error.retryable)

    async def test_many_earlier_uploads(self) -> None:
        """Of a list with hundreds of earlier uploads, few are removed before the capture is uploaded."""
        methods: list[bytes] = []
        one = b"<Upload><Key>%s</Key><UploadId>u</UploadId></Upload>"

        def speak(connection: socket.socket) -> None:
            method = connection.recv(65536).partition(b" ")[0]
            methods.append(method)
            if method == b"GET":
                uploads = one % make_artifact(self.content).name.encode() * 500
                body = b"<ListMultipartUploadsResult>%s</ListMultipartUploadsResult>" % uploads
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            elif method == b"DELETE":
                connection.sendall(b"HTTP/1.1 204 OK\r\n\r\n")
            else:
                connection.sendall(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)

        await self.failure_in_parts(speak, 20)
        self.assertEqual([b"GET", *[b"DELETE"] * 20, b"HEAD", b"POST"], methods)

    async def test_nested_answer(self) -> None:
        """What an answer is nested too deeply for is said in words."""

        def speak(connection: socket.socket) -> None:
            connection.recv(65536)
            body = b"<Error>" + b"<a>" * 5000 + b"</a>" * 5000 + b"</Error>"
            connection.sendall(b"HTTP/1.1 400 No\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)

        artifact = make_artifact(self.content, endpoint=self.peer(speak).endpoint)
        error = await self.assertFailure(
            self.destination().store(artifact).addTimeout(_PATIENCE_SECONDS, reactor), DestinationError
        )
        self.assertIn("nested too deeply", str(error))
        self.assertTrue(error.retryable)

    async def test_many_addresses(self) -> None:
        """Of a name with thousands of addresses, few are tried."""
        # Nobody else gets the port as long as this one has it.
        unused = socket.socket()
        self.addCleanup(unused.close)
        unused.bind(("127.0.0.1", 0))
        address = unused.getsockname()
        tried: list[Any] = []

        class Socket(socket.socket):
            def connect(self, address: Any) -> None:
                tried.append(address)
                super().connect(address)

        self.patch(socket, "getaddrinfo", lambda *_, **__: [(2, 1, 6, "", address) for _ in range(2000)])
        self.patch(socket, "socket", Socket)
        store = self.destination().store(make_artifact(self.content, endpoint="http://many.example"))
        error = await self.assertFailure(store.addTimeout(_PATIENCE_SECONDS, reactor), DestinationError)
        self.assertTrue(error.retryable)
        self.assertEqual(tried, [address] * MOST_ADDRESSES)

    async def test_apart(self) -> None:
        """What hangs at an endpoint that requests name leaves the configured one alone."""
        peer = self.peer(lambda connection: peer.drip(connection, b"H"))
        destination = self.destination()
        hanging = [destination.store(make_artifact(self.content, endpoint=peer.endpoint)) for _ in range(30)]
        await destination.store(make_artifact(self.content)).addTimeout(_PATIENCE_SECONDS, reactor)
        # Such a one is the configured one, too.
        asked = make_artifact(self.content, endpoint=self.server.endpoint)
        await destination.store(asked).addTimeout(_PATIENCE_SECONDS, reactor)
        for stored in hanging:
            stored.cancel()
            await self.assertFailure(stored, defer.CancelledError)
        await self.one_thread.run(lambda: None).addTimeout(_PATIENCE_SECONDS, reactor)

    async def test_nothing_kept(self) -> None:
        """A connection ends with its attempt."""
        destination = self.destination()
        await destination.store(make_artifact(self.content))
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            await destination.store(make_artifact(self.content))
        for _ in range(200):
            # The server, of this process too, may be a bit later.
            if len(os.listdir("/proc/self/fd")) <= before:
                break
            await task.deferLater(reactor, 0.01)
        self.assertLessEqual(len(os.listdir("/proc/self/fd")), before)
        self.assertEqual(len({request[1]["x-client"] for request in self.server.requests}), 6)
