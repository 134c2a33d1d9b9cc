"""The Redis source and a real redis-server."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor, task, tcp, threads
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial import unittest

from pcapsvc.sources.redis.frames import MAX_MESSAGE_BYTES
from pcapsvc.sources.redis.source import RedisSource
from pcapsvc.testing import MemorySink
from peers.certificates import LABELS, Authority, labelled
from peers.redis import RedisServer

CHECK_SECONDS = 0.4
# This process, or the server, may be delayed for a while. A frozen server should be noticed soon.
ANSWER_SECONDS = 60.0
SOON_SECONDS = 2.0


class RedisSourceTests(unittest.TestCase):
    """L{RedisSource} is subscribed whenever it can be."""

    timeout = 120

    def setUp(self) -> None:
        self.events: list[str] = []
        globalLogPublisher.addObserver(self.observe)
        self.addCleanup(globalLogPublisher.removeObserver, self.observe)

    def observe(self, event: Any) -> None:
        """Collect what the source logs."""
        if "redis" in event.get("log_namespace", ""):
            self.events.append(f"{event['log_level'].name}: {formatEvent(event)}")

    def server(self, **options: Any) -> RedisServer:
        """A server that isn't started."""
        server = RedisServer(**options)
        self.addCleanup(server.stop)
        return server

    def listen(self, server: RedisServer, **options: Any) -> RedisSource:
        """A started source."""
        self.sink = MemorySink()
        source = RedisSource(
            reactor,
            self.sink,
            host=options.pop("host", server.host),
            port=server.port,
            channel="capture",
            check_seconds=CHECK_SECONDS,
            answer_seconds=options.pop("answer_seconds", ANSWER_SECONDS),
            retry_seconds=(0.05, 0.2),
            **options,
        )
        source.startService()
        self.addCleanup(source.stopService)
        return source

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition is true."""
        while not condition():
            await task.deferLater(reactor, 0.01)

    async def receives(self, server: RedisServer, body: bytes) -> None:
        """A message that is published is submitted, once the source is subscribed."""
        while await threads.deferToThread(server.subscribers, "capture") != 1:
            await task.deferLater(reactor, 0.01)
        self.assertEqual(await threads.deferToThread(server.publish, "capture", body), 1)
        await self.until(lambda: ("redis", body) in self.sink.submitted)

    async def logged(self, text: str) -> None:
        """Wait until a text is logged."""
        await self.until(lambda: any(text in event for event in self.events))

    def warnings(self) -> list[str]:
        """The logged warnings."""
        return [event for event in self.events if event.startswith("warn")]

    async def test_password(self) -> None:
        """With the right password it subscribes, and the password is not logged."""
        server = self.server(password='s3cret "quoted"')
        server.start()
        self.listen(server, password=server.password)
        await self.receives(server, b'{"node":"any"}')
        self.assertEqual(self.warnings(), [])
        self.assertNotIn("s3cret", "".join(self.events))

    async def test_no_password(self) -> None:
        """A missing password is logged."""
        server = self.server(password="s3cret")
        server.start()
        self.listen(server)
        await self.logged("the server requires a password, and none is configured")

    async def test_wrong_password(self) -> None:
        """A wrong password is logged once; when the server accepts it, the source subscribes."""
        server = self.server(password="new")
        server.start()
        self.listen(server, password="old-s3cret")
        await self.logged("AUTH was refused (wrong user name or password)")
        await task.deferLater(reactor, 0.5)
        self.assertEqual(len(self.warnings()), 1)
        server.command("CONFIG", "SET", "requirepass", "old-s3cret")
        await self.receives(server, b"corrected")
        self.assertNotIn("s3cret", "".join(self.events))

    async def test_password_corrected_by_restart(self) -> None:
        """A server that is replaced by one with the right password is found."""
        server = self.server(password="new")
        server.start()
        self.listen(server, password="old")
        await self.logged("AUTH was refused")
        await threads.deferToThread(server.end)
        right = self.server(password="old")
        self.move(right, server)
        await threads.deferToThread(right.start)
        await self.receives(right, b"corrected")

    def move(self, server: RedisServer, to: RedisServer) -> None:
        """Give a server that isn't started the port of another one."""
        server.listen_on(to.port)

    async def test_user(self) -> None:
        """A user of an access list can subscribe."""
        server = self.server(users={"node7": "s3cret"})
        server.start()
        self.listen(server, username="node7", password="s3cret")
        await self.receives(server, b"x")

    async def test_user_without_rights(self) -> None:
        """A user without permission for the channel is logged; once it is granted, the source subscribes."""
        server = self.server(users={"node7": "s3cret"})
        server.start()
        server.command("ACL", "SETUSER", "node7", "resetchannels")
        self.listen(server, username="node7", password="s3cret")
        await self.logged("SUBSCRIBE was refused (the user has no permission for this channel)")
        server.command("ACL", "SETUSER", "node7", "&capture")
        await self.receives(server, b"x")

    async def test_user_who_goes(self) -> None:
        """A user whose access is revoked is disconnected by the server, and the reason is logged."""
        server = self.server(users={"node7": "s3cret"})
        server.start()
        self.listen(server, username="node7", password="s3cret")
        await self.receives(server, b"x")
        server.command("ACL", "DELUSER", "node7")
        await self.logged("AUTH was refused")

    async def test_tls(self) -> None:
        """The certificate is verified with the CA file, for a name and for an address."""
        server = self.server(tls=True, password="s3cret")
        server.start()
        for host in ("localhost", "127.0.0.1"):
            source = self.listen(
                server, host=host, tls=True, ca_file=str(server.ca_file), password=server.password
            )
            await self.receives(server, b"x")
            await source.stopService()
        self.assertEqual(self.warnings(), [])

    async def test_labels(self) -> None:
        """The server is verified with a file whose certificates have any of their labels."""
        server = self.server(tls=True)
        server.start()
        for label in LABELS:
            source = self.listen(server, tls=True, ca_file=str(labelled(server.ca_file, label)))
            await self.receives(server, label.encode())
            await source.stopService()
        self.assertEqual(self.warnings(), [])

    async def test_tls_not_trusted(self) -> None:
        """A certificate of another CA is refused, and so is an unknown one without a CA file."""
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        server = self.server(tls=True, password="s3cret")
        server.start()
        for ca_file in (str(Authority(Path(directory.name)).file), None):
            self.events.clear()
            source = self.listen(server, tls=True, ca_file=ca_file, password=server.password)
            await self.logged("TLS failed: certificate verify failed")
            await source.stopService()
            self.assertEqual(len(self.warnings()), 1)

    async def test_tls_without(self) -> None:
        """A server that doesn't speak TLS is logged."""
        server = self.server()
        server.start()
        self.listen(server, tls=True)
        await self.logged("not subscribed")

    async def test_restart(self) -> None:
        """After a restart of the server it subscribes again; both are logged once."""
        server = self.server()
        server.start()
        self.listen(server)
        await self.receives(server, b"before")
        await threads.deferToThread(server.end)
        await task.deferLater(reactor, 0.5)
        await threads.deferToThread(server.start)
        await self.receives(server, b"after")
        self.assertEqual([event.split(":")[0] for event in self.events], ["info", "warn", "info"])

    async def test_cut_off(self) -> None:
        """Disconnected by the server, it subscribes again."""
        server = self.server()
        server.start()
        self.listen(server)
        for body in (b"1", b"2", b"3"):
            await self.receives(server, body)
            server.drop_subscribers()
            count = len(self.warnings())
            await self.until(lambda count=count: len(self.warnings()) > count)

    async def test_down_at_start(self) -> None:
        """A server that starts later is found."""
        server = self.server()
        self.listen(server)
        await self.logged("not subscribed")
        await threads.deferToThread(server.start)
        await self.receives(server, b"x")

    async def test_half_open(self) -> None:
        """A frozen server is noticed in time, and its messages arrive once it continues."""
        server = self.server()
        server.start()
        self.listen(server, answer_seconds=SOON_SECONDS)
        await self.receives(server, b"before")
        began = reactor.seconds()
        server.freeze()
        await self.logged("no answer to PING within 2 s")
        self.assertLess(reactor.seconds() - began, CHECK_SECONDS + SOON_SECONDS + 10)
        await task.deferLater(reactor, 0.5)
        server.thaw()
        await self.receives(server, b"after")

    async def test_replaced_while_frozen(self) -> None:
        """A frozen server that is replaced by another one is given up."""
        server = self.server()
        server.start()
        self.listen(server, answer_seconds=SOON_SECONDS)
        await self.receives(server, b"before")
        server.freeze()
        await self.logged("no answer to PING")
        await threads.deferToThread(server.restart)
        await self.receives(server, b"after")

    async def test_odd_messages(self) -> None:
        """Messages that aren't UTF-8, numbers, or huge ones don't affect the next."""
        server = self.server()
        server.start()
        self.listen(server)
        await self.receives(server, b"\xff\xfe\x00\r\n")
        await self.receives(server, b"123")
        await self.receives(server, bytes(MAX_MESSAGE_BYTES // 2))
        await threads.deferToThread(server.publish, "capture", bytes(20 * MAX_MESSAGE_BYTES))
        await self.logged(f"skipped a message of {20 * MAX_MESSAGE_BYTES} bytes")
        await self.receives(server, b"after")
        self.assertEqual(len(self.warnings()), 1)
        self.assertEqual(len(self.sink.submitted), 4)
        self.assertEqual(server.subscribers("capture"), 1)

    async def test_skipped_among_others(self) -> None:
        """Messages that are too long cost no others: all that are published are submitted."""
        server = self.server()
        server.start()
        self.listen(server)
        await self.receives(server, b"first")
        for number in range(20):
            await threads.deferToThread(server.publish, "capture", bytes(MAX_MESSAGE_BYTES + 1))
            heard = await threads.deferToThread(server.publish, "capture", b"%d" % number)
            self.assertEqual(heard, 1)
        await self.until(lambda: len(self.sink.submitted) == 21)

    async def test_no_ping(self) -> None:
        """A user who may subscribe and do nothing else stays subscribed."""
        server = self.server(users={"node7": "s3cret"})
        server.start()
        server.command("ACL", "SETUSER", "node7", "nocommands", "+subscribe")
        self.listen(server, username="node7", password="s3cret")
        await self.receives(server, b"before")
        await task.deferLater(reactor, 4 * CHECK_SECONDS)
        await self.receives(server, b"after")
        self.assertEqual(self.warnings(), [])

    async def test_stop(self) -> None:
        """A stop closes the connection, and leaves no reader or delayed call behind."""
        server = self.server(tls=True)
        server.start()
        source = self.listen(server, tls=True, ca_file=str(server.ca_file))
        await self.receives(server, b"x")
        self.assertEqual(len(self.clients()), 1)
        await source.stopService()
        self.assertEqual(self.clients(), [])

    def clients(self) -> list[tcp.Client]:
        """The connections that the reactor watches."""
        watched = [*reactor.getReaders(), *reactor.getWriters()]
        return [entry for entry in watched if isinstance(entry, tcp.Client)]

    async def test_stop_while_frozen(self) -> None:
        """A stop doesn't wait for a frozen server."""
        server = self.server(tls=True)
        server.start()
        source = self.listen(server, tls=True, ca_file=str(server.ca_file))
        await self.receives(server, b"x")
        server.freeze()
        began = reactor.seconds()
        await source.stopService()
        self.assertLess(reactor.seconds() - began, 30.0)
