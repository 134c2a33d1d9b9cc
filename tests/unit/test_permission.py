"""The check at the start whether the process may capture."""

from __future__ import annotations

from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.trial import unittest

from pcapsvc.host.permission import PermissionCheck


class PermissionCheckTests(unittest.SynchronousTestCase):
    """What is logged at the start."""

    def lines(self, error: OSError | None) -> list[tuple[LogLevel, str]]:
        """What is logged if an attempt to capture fails with this error; L{None} if it succeeds."""
        lines: list[tuple[LogLevel, str]] = []

        def keep(event: LogEvent) -> None:
            lines.append((event["log_level"], formatEvent(event)))

        def attempt() -> None:
            if error is not None:
                raise error

        globalLogPublisher.addObserver(keep)
        self.addCleanup(globalLogPublisher.removeObserver, keep)
        PermissionCheck(attempt).startService()
        globalLogPublisher.removeObserver(keep)
        return lines

    def test_allowed(self) -> None:
        """If captures are possible, nothing is logged."""
        self.assertEqual(self.lines(None), [])

    def test_not_allowed(self) -> None:
        """A missing capability is named in one line."""
        [(level, line)] = self.lines(PermissionError(1, "Operation not permitted"))
        self.assertIs(level, LogLevel.critical)
        self.assertIn("no permission to capture: the daemon needs CAP_NET_RAW", line)

    def test_not_possible(self) -> None:
        """Any other reason is logged in the kernel's words."""
        [(level, line)] = self.lines(OSError(97, "Address family not supported by protocol"))
        self.assertIs(level, LogLevel.critical)
        self.assertIn("Address family not supported", line)
