"""The memory of a daemon that has nothing to do."""

from __future__ import annotations

import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from peers.daemon import Daemon
from peers.process import OwnProcess
from peers.redis import RedisServer

_TWISTD = (str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=")
# Twisted alone, with what a daemon without TLS uses of it.
_BARE = """\
import sys

sys.modules["OpenSSL"] = None

from twisted.application import internet, service
from twisted.web.http import HTTPFactory

application = service.Application("bare")
internet.TCPServer(0, HTTPFactory(), interface="127.0.0.1").setServiceParent(application)
"""
# Measured: 11,250; with requests and events over Redis, 12,100; with requests over Redis and no HTTP, 9,350.
_MOST_KILOBYTES = 12_500
_MOST_WITH_REDIS_KILOBYTES = 14_000
_MOST_WITHOUT_HTTP_KILOBYTES = 10_250


def _resident_kilobytes(pid: int) -> int:
    """What C{VmRSS} in proc(5) says."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


class MemoryAtRestTests(SynchronousTestCase):
    """
    HTTP and a local directory, before the first request. What a bare C{twistd} needs depends on the versions
    of Python, Twisted and the C library, so no absolute number is expected.
    """

    def setUp(self) -> None:
        """A bare C{twistd}."""
        self.bare = OwnProcess("bare")
        self.addCleanup(self.bare.clean_up)
        file = self.bare.directory / "bare.tac"
        file.write_text(_BARE)
        self.bare.start(
            [*_TWISTD, "--python", str(file)],
            lambda: "HTTPFactory starting on" in self.bare.log,
        )

    def added(self, daemon: Daemon | OwnProcess) -> int:
        """How much more a daemon needs, in kilobytes."""
        return _resident_kilobytes(daemon.pid) - _resident_kilobytes(self.bare.pid)

    def redis(self) -> str:
        """The configuration for requests from a server of its own."""
        server = RedisServer()
        self.addCleanup(server.stop)
        server.start()
        return f"[redis]\nlisten = true\nhost = '{server.host}'\nport = {server.port}\n"

    def test_beside_twisted(self) -> None:
        """The daemon adds at most 13 MB."""
        daemon = Daemon()
        self.addCleanup(daemon.stop)
        daemon.start(is_cold=True)
        self.assertLess(self.added(daemon), _MOST_KILOBYTES)

    def test_redis(self) -> None:
        """With requests from Redis and events to it, without TLS, it adds at most 14,000 KiB."""
        daemon = Daemon(f"{self.redis()}[reports.redis]\nsend = true\n")
        self.addCleanup(daemon.stop)
        daemon.start(is_cold=True)
        daemon.logged("subscribed to channel")
        daemon.logged("Events to Redis")
        self.assertLess(self.added(daemon), _MOST_WITH_REDIS_KILOBYTES)

    def test_without_http(self) -> None:
        """Without HTTP, with requests from Redis alone, it adds at most 10.5 MB."""
        daemon = OwnProcess("daemon")
        self.addCleanup(daemon.clean_up)
        file = daemon.directory / "pcapsvc.toml"
        local = f"[general]\nwritelocal = true\nlocaldir = '{daemon.directory}'\n"
        file.write_text(f"{local}{self.redis()}")
        daemon.start(
            [*_TWISTD, "pcapsvc", "--config", str(file)], lambda: "subscribed to channel" in daemon.log
        )
        self.assertLess(self.added(daemon), _MOST_WITHOUT_HTTP_KILOBYTES)
