"""A manhole in the process of the test, and OpenSSH's clients in theirs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet import defer, protocol, reactor, task, threads
from twisted.internet.error import ProcessExitedAlready
from twisted.logger import LogEvent, eventAsText, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial import unittest

from pcapsvc.core.mask import Mask
from pcapsvc.host.manhole.service import ManholeService
from pcapsvc.host.manhole.time_limit import TimeLimit
from peers.ssh import SshClient

PASSWORD = "hunter2-hunter2"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What a client did."""

    status: int | None
    output: str
    errors: str


class Client(protocol.ProcessProtocol):
    """
    A client in a process of its own.

    @ivar ended: fires with L{Ended}.
    """

    def __init__(self) -> None:
        self.ended: defer.Deferred[Ended] = defer.Deferred()
        self.output = b""
        self.errors = b""
        self._waiting: list[tuple[bytes, defer.Deferred[None]]] = []
        self._begun: defer.Deferred[None] = defer.Deferred()

    def outReceived(self, data: bytes) -> None:
        """Keep it."""
        self.output += data
        for words, seen in self._waiting:
            if words in self.output and not seen.called:
                seen.callback(None)

    def errReceived(self, data: bytes) -> None:
        """Keep it."""
        self.errors += data

    def processEnded(self, reason: Failure) -> None:
        """Say so."""
        status = reason.value.exitCode  # type: ignore[union-attr]
        self.ended.callback(
            Ended(status=status, output=self.output.decode(errors="replace"), errors=self.errors.decode())
        )

    def seen(self, words: bytes) -> defer.Deferred[None]:
        """Fires as soon as these words were output."""
        seen: defer.Deferred[None] = defer.Deferred()
        self._waiting.append((words, seen))
        self.outReceived(b"")
        return seen

    def type(self, text: str) -> None:
        """Type."""
        assert self.transport is not None
        self.transport.write(text.encode())

    def kill(self) -> None:
        """End it."""
        try:
            self.transport.signalProcess("KILL")  # type: ignore[union-attr]
        except ProcessExitedAlready:
            pass


class ManholeCase(unittest.TestCase):
    """A manhole in this process, and clients in theirs."""

    timeout = 300
    endpoint = "tcp:0:interface=127.0.0.1"
    # Of a line, in seconds: none is interrupted, however late this process is run.
    limit_seconds = 60.0

    def setUp(self) -> Any:
        """One that listens, with one key that may log in."""
        self.ssh = SshClient()
        self.addCleanup(self.ssh.stop)
        self.directory = str(self.ssh.directory)
        self.authorized_keys = os.path.join(self.directory, "authorized_keys")
        self.host_key = os.path.join(self.directory, "host_key")
        self.authorize(self.ssh.make_key())
        self.names: dict[str, Any] = {"reactor": reactor, "password": PASSWORD}
        self.log: list[str] = []
        globalLogPublisher.addObserver(self._observe)
        self.addCleanup(globalLogPublisher.removeObserver, self._observe)
        return self.start()

    def _observe(self, event: LogEvent) -> None:
        if str(event.get("log_namespace")).startswith("pcapsvc.host.manhole"):
            self.log.append(eventAsText(event, includeTimestamp=False, includeSystem=False))

    async def _start(self) -> None:
        self.manhole = ManholeService(
            reactor,
            listen=self.endpoint,
            authorized_keys=self.authorized_keys,
            host_key=self.host_key,
            namespace=lambda: self.names,
            mask=Mask([PASSWORD]),
            run_in_thread=threads.deferToThread,
            limit=TimeLimit(self.limit_seconds),
        )
        self.manhole.startService()
        assert self.manhole.listening is not None
        self.port = getattr(await self.manhole.listening, "port", None)

    def start(self) -> defer.Deferred[None]:
        """Start a manhole that stops at the end of the test."""
        started = defer.Deferred.fromCoroutine(self._start())
        self.addCleanup(self.stop)
        return started

    def stop(self) -> Any:
        """Stop it."""
        return self.manhole.stopService() if self.manhole.running else None

    def authorize(self, *lines: str) -> None:
        """Write who may log in."""
        with open(self.authorized_keys, "w") as file:
            file.writelines(lines)
        os.chmod(self.authorized_keys, 0o600)

    def arguments(self, *command: str, **how: Any) -> list[str]:
        """The command line of a client."""
        return self.ssh.arguments(*command, port=self.port, **how)

    def client(self, *command: str, **how: Any) -> Client:
        """Start a client, which is ended with the test at the latest."""
        client = Client()
        words = self.arguments(*command, **how)
        reactor.spawnProcess(client, words[0], words, env=os.environ)  # type: ignore[attr-defined]
        self.addCleanup(lambda: None if client.ended.called else self._end(client))
        return client

    def _end(self, client: Client) -> Any:
        client.kill()
        return client.ended

    def run_client(self, *command: str, **how: Any) -> defer.Deferred[Ended]:
        """Run a client until it ends."""
        return self.client(*command, **how).ended

    async def until(self, look: Callable[[], Any], what: str) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + 180
        while not look():
            self.assertLess(time.monotonic(), deadline, f"waited for {what} in vain: {self.log}")
            await task.deferLater(reactor, 0.02)  # type: ignore[arg-type]
