"""Server endpoint strings of Twisted, as they are listened on."""

from __future__ import annotations

from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactorClock
from twisted.trial import unittest

from pcapsvc.net.listen import BACKLOG, listening_endpoint, unusable


class UnusableTests(unittest.SynchronousTestCase):
    """Why an endpoint can't be listened on."""

    def test_reasons(self) -> None:
        """A file that Twisted needs besides is named as what is missing."""
        for problem, rule in (
            (
                OSError(98, "Address in use"),
                "must be an endpoint that can be listened on ([Errno 98] Address in use)",
            ),
            (
                FileNotFoundError(2, "No such file or directory", "/dev/null"),
                "can't be listened on, as something else is missing: /dev/null: No such file or directory",
            ),
        ):
            [found] = unusable("http.listen", "tcp:1", problem).problems
            self.assertEqual(found.rule, rule)


class BacklogTests(unittest.SynchronousTestCase):
    """How many connections may wait in the kernel."""

    def backlog(self, description: str) -> int:
        """That of a string for TCP."""
        reactor = MemoryReactorClock()
        listening_endpoint(reactor, description, socket_mode="660").listen(Factory())
        [(_, _, backlog, _)] = reactor.tcpServers
        return int(backlog)

    def test_default(self) -> None:
        """There is room for a crowd."""
        for description in ("tcp:0", "tcp:0:127.0.0.1", "tcp:port=0:interface=127.0.0.1", "tcp6:0"):
            self.assertEqual(self.backlog(description), BACKLOG, description)

    def test_given(self) -> None:
        """A string may have its own, with or without the name."""
        for description in ("tcp:0:backlog=7", "tcp:0:127.0.0.1:7", "tcp6:0:7", "tcp6:0:backlog=7"):
            self.assertEqual(self.backlog(description), 7, description)
