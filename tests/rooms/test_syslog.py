"""The log, as it goes to syslog."""

from __future__ import annotations

import syslog

from twisted.logger import Logger, LogPublisher
from twisted.python.failure import Failure
from twisted.trial import unittest

from pcapsvc.syslog import SyslogService, one_line


class FakeSyslog:
    """Stands in for the standard library's module: keeps what it is given."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, int, int]] = []
        self.lines: list[tuple[int, str]] = []
        self.closed = 0

    def openlog(self, ident: str, logoption: int, facility: int) -> None:
        self.opened.append((ident, logoption, facility))

    def syslog(self, priority: int, message: str) -> None:
        self.lines.append((priority, message))

    def closelog(self) -> None:
        self.closed += 1


class SyslogServiceTests(unittest.TestCase):
    """While the service runs, each event of the log is a line in syslog."""

    def setUp(self) -> None:
        self.module = FakeSyslog()
        self.publisher = LogPublisher()
        self.log = Logger(namespace="test", observer=self.publisher)

    def start(self, priority: int = 85) -> SyslogService:
        service = SyslogService(
            priority=priority, tag="pcapsvc", module=self.module, publisher=self.publisher
        )
        service.startService()
        return service

    def test_only_while_it_runs(self) -> None:
        """Nothing is sent before the start and after the stop."""
        self.log.info("before")
        service = self.start()
        self.log.info("while")
        service.stopService()
        self.log.info("after")
        self.assertEqual([(85, "while")], self.module.lines)
        self.assertEqual(1, self.module.closed)

    def test_who_we_are(self) -> None:
        """The lines bear the tag, the process's id and the facility of the priority."""
        self.start()
        self.assertEqual([("pcapsvc", syslog.LOG_PID, syslog.LOG_AUTHPRIV)], self.module.opened)

    def test_nothing_at_construction(self) -> None:
        """A service that isn't started doesn't touch syslog."""
        SyslogService(priority=85, tag="pcapsvc", module=self.module, publisher=self.publisher)
        self.log.info("never")
        self.assertEqual(([], []), (self.module.opened, self.module.lines))

    def test_fields(self) -> None:
        """An event is formatted with its fields."""
        self.start()
        self.log.info("capture {id}: {packets} packets", id="abc", packets=3)
        self.assertEqual("capture abc: 3 packets", self.module.lines[0][1])

    def test_worse_is_more_severe(self) -> None:
        """Warnings and errors are sent with their own severity; the rest, with the configured one."""
        self.start(priority=syslog.LOG_DAEMON | syslog.LOG_NOTICE)
        self.log.info("i")
        self.log.warn("w")
        self.log.error("e")
        self.log.critical("c")
        self.assertEqual(
            [
                (syslog.LOG_DAEMON | syslog.LOG_NOTICE, "i"),
                (syslog.LOG_DAEMON | syslog.LOG_WARNING, "w"),
                (syslog.LOG_DAEMON | syslog.LOG_ERR, "e"),
                (syslog.LOG_DAEMON | syslog.LOG_CRIT, "c"),
            ],
            self.module.lines,
        )

    def test_never_less_severe(self) -> None:
        """Where the configured severity is worse than an event's own, it stays."""
        self.start(priority=syslog.LOG_DAEMON | syslog.LOG_ALERT)
        self.log.warn("w")
        self.log.critical("c")
        self.assertEqual({syslog.LOG_DAEMON | syslog.LOG_ALERT}, {line[0] for line in self.module.lines})

    def test_no_debugging(self) -> None:
        """What is only for debugging isn't sent."""
        self.start()
        self.log.debug("d")
        self.assertEqual([], self.module.lines)

    def test_one_line_an_event(self) -> None:
        """An event of several lines, such as a failure with its traceback, is one line."""
        self.start()
        self.log.info("one\ntwo\r\n")
        try:
            raise ValueError("three\nfour")
        except ValueError:
            self.log.failure("it failed", failure=Failure())
        (_, first), (priority, second) = self.module.lines
        self.assertEqual("one\\ntwo", first)
        self.assertNotIn("\n", second)
        self.assertTrue(second.startswith("it failed\\nTraceback"), second)
        self.assertIn("ValueError: three\\nfour", second)
        self.assertEqual(syslog.LOG_AUTHPRIV | syslog.LOG_CRIT, priority)

    def test_an_event_without_a_level(self) -> None:
        """An event that has no level, as those of Python's own writers, is sent as configured."""
        self.start()
        self.publisher({"log_format": "plain", "log_time": 0.0})
        self.assertEqual([(85, "plain")], self.module.lines)

    def test_an_event_without_a_text(self) -> None:
        """An event that says nothing is no line."""
        self.start()
        self.publisher({"log_time": 0.0})
        self.assertEqual([], self.module.lines)


class OneLineTests(unittest.TestCase):
    """A text as one line."""

    def test_what_syslog_cannot_take(self) -> None:
        """NUL and lone surrogates, which syslog refuses, and characters that end a line, are escaped."""
        line = one_line("a\x00b\ud800c\u2028d\x1b[0mé")
        self.assertEqual("a\\x00b\\ud800c\\u2028d\\x1b[0mé", line)
        line.encode("utf-8")

    def test_long(self) -> None:
        """Of a text that is too long, the beginning and the end are kept."""
        line = one_line("b" + "x" * 100_000 + "e")
        self.assertLess(len(line), 8100)
        self.assertEqual(("b", "e"), (line[0], line[-1]))
