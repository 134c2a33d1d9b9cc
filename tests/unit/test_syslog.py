"""The log in syslog."""

from __future__ import annotations

import os
import re
import socket
import syslog
import tempfile
from pathlib import Path

from twisted.logger import Logger, LogPublisher
from twisted.python.failure import Failure
from twisted.trial import unittest

from pcapsvc.core.log_budget import BURST_BYTES
from pcapsvc.core.mask import of_process
from pcapsvc.host.syslog import SyslogService, one_line

#: More lines than the kernel queues for a socket (unix(7), max_dgram_qlen).
MANY = 2000


class Syslog:
    """The local syslog: a datagram socket that a test reads."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        self._socket.setblocking(False)

    def message(self) -> str:
        """The next message."""
        return self._socket.recv(100_000).decode()

    def messages(self) -> list[str]:
        """The messages that arrived since the last call."""
        messages: list[str] = []
        while True:
            try:
                messages.append(self.message())
            except BlockingIOError:
                return messages

    def lines(self) -> list[tuple[int, str]]:
        """The same, as the priority and the text of each."""
        found = [re.fullmatch(r"<(\d+)>[^ ]+\[\d+\]: (.*)", message) for message in self.messages()]
        return [(int(match[1]), match[2]) for match in found if match is not None]

    def texts(self) -> list[str]:
        """The same, as the text alone."""
        return [text for _, text in self.lines()]

    def die(self) -> None:
        """Close the socket, and leave its path behind."""
        self._socket.close()

    def stop(self) -> None:
        """Close the socket, and remove its path."""
        self.die()
        Path(self._path).unlink(missing_ok=True)


class SyslogTestCase(unittest.SynchronousTestCase):
    """A syslog, and a log."""

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = os.path.join(directory.name, "log")
        self.syslog = self.start_syslog()
        self.publisher = LogPublisher()
        self.log = Logger(namespace="test", observer=self.publisher)

    def start_syslog(self) -> Syslog:
        """A syslog that listens."""
        started = Syslog(self.path)
        self.addCleanup(started.stop)
        return started

    def service(self, priority: int = 85) -> SyslogService:
        """The service, not started yet."""
        return SyslogService(priority=priority, tag="pcapsvc", address=self.path, publisher=self.publisher)

    def start(self, priority: int = 85) -> SyslogService:
        """The service, started."""
        service = self.service(priority)
        service.startService()
        self.addCleanup(service.stopService)
        return service


class SyslogServiceTests(SyslogTestCase):
    """While the service runs, each event of the log is one line in syslog."""

    def test_secrets(self) -> None:
        """Secrets of the configuration are hidden, whoever logs them."""
        of_process.hide(["hunter22"])
        self.addCleanup(of_process.hide, ())
        self.start()
        self.log.info("AUTH {password}", password="hunter22")
        self.assertEqual(self.syslog.texts(), ["AUTH <secret>"])

    def test_only_while_it_runs(self) -> None:
        """Nothing is sent before the start and after the stop, and it can be started again."""
        self.log.info("before")
        service = self.start()
        self.log.info("while")
        service.stopService()
        self.log.info("after")
        self.assertEqual([(85, "while")], self.syslog.lines())
        service.startService()
        self.log.info("again")
        self.assertEqual(["again"], self.syslog.texts())

    def test_format(self) -> None:
        """Each line has the priority, the tag and the process id, in UTF-8, as syslog(3) sends them."""
        self.start()
        self.log.info("grüß")
        self.assertEqual([f"<85>pcapsvc[{os.getpid()}]: grüß"], self.syslog.messages())

    def test_nothing_at_construction(self) -> None:
        """A service that was not started sends nothing, and can be stopped."""
        service = self.service()
        self.log.info("never")
        service.stopService()
        self.assertEqual([], self.syslog.messages())

    def test_fields(self) -> None:
        """An event is formatted with its fields."""
        self.start()
        self.log.info("capture {id}: {packets} packets", id="abc", packets=3)
        self.assertEqual("capture abc: 3 packets", self.syslog.texts()[0])

    def test_severity(self) -> None:
        """Warnings and errors are sent with their own severity, all others with the configured one."""
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
            self.syslog.lines(),
        )

    def test_never_less_severe(self) -> None:
        """If the configured severity is more severe than the event's own, it is used."""
        self.start(priority=syslog.LOG_DAEMON | syslog.LOG_ALERT)
        self.log.warn("w")
        self.log.critical("c")
        self.assertEqual({syslog.LOG_DAEMON | syslog.LOG_ALERT}, {line[0] for line in self.syslog.lines()})

    def test_no_debugging(self) -> None:
        """Debug events are not sent."""
        self.start()
        self.log.debug("d")
        self.assertEqual([], self.syslog.lines())

    def test_one_line_an_event(self) -> None:
        """An event of several lines, such as a traceback, is sent as one."""
        self.start()
        self.log.info("one\ntwo\r\n")
        try:
            raise ValueError("three\nfour")
        except ValueError:
            self.log.failure("it failed", failure=Failure())
        (_, first), (priority, second) = self.syslog.lines()
        self.assertEqual("one\\ntwo", first)
        self.assertNotIn("\n", second)
        self.assertTrue(second.startswith("it failed\\nTraceback"), second)
        self.assertIn("ValueError: three\\nfour", second)
        self.assertEqual(syslog.LOG_AUTHPRIV | syslog.LOG_CRIT, priority)

    def test_an_event_without_a_level(self) -> None:
        """An event without a level is sent with the configured severity."""
        self.start()
        self.publisher({"log_format": "plain", "log_time": 0.0})
        self.assertEqual([(85, "plain")], self.syslog.lines())

    def test_an_event_without_a_text(self) -> None:
        """An event without text is not sent."""
        self.start()
        self.publisher({"log_time": 0.0})
        self.assertEqual([], self.syslog.lines())


class LossTests(SyslogTestCase):
    """Nothing waits for syslog, and lines that it didn't accept are counted."""

    def overflow(self) -> None:
        """Log many more lines than fit into the queue of a syslog that doesn't read."""
        for number in range(MANY):
            self.log.info("line {number}", number=number)

    def test_hanging(self) -> None:
        """Lines that a hanging syslog doesn't accept are dropped; their number is sent later."""
        self.start()
        self.overflow()
        taken = self.syslog.texts()
        self.assertEqual([f"line {number}" for number in range(len(taken))], taken)
        self.assertLess(len(taken), MANY)
        self.log.info("there again")
        self.log.info("as before")
        self.assertEqual(
            [
                (85, "there again"),
                (syslog.LOG_AUTHPRIV | syslog.LOG_WARNING, f"{MANY - len(taken)} lines were dropped"),
                (85, "as before"),
            ],
            self.syslog.lines(),
        )

    def test_restarted(self) -> None:
        """While there is no syslog, lines are dropped. A new one gets all later lines."""
        self.start()
        self.log.info("first")
        self.syslog.stop()
        self.log.info("lost")
        self.syslog = self.start_syslog()
        self.log.info("second")
        self.assertEqual(["second", "1 line was dropped"], self.syslog.texts())

    def test_left_behind(self) -> None:
        """After a syslog died, lines are dropped until there is a new socket."""
        self.start()
        self.syslog.die()
        self.log.info("lost")
        os.unlink(self.path)
        self.syslog = self.start_syslog()
        self.log.info("taken")
        self.assertEqual(["taken", "1 line was dropped"], self.syslog.texts())

    def test_not_there(self) -> None:
        """A syslog that starts after the service gets all later lines."""
        self.syslog.stop()
        self.start()
        for _ in range(3):
            self.log.info("lost")
        self.syslog = self.start_syslog()
        self.log.info("first")
        self.assertEqual(["first", "3 lines were dropped"], self.syslog.texts())

    def test_no_room_for_the_number(self) -> None:
        """If a line is accepted, and the number of dropped lines is not, the number follows the next line."""
        self.start()
        self.overflow()
        taken = [self.syslog.message()]
        self.log.info("in the only room")
        taken += self.syslog.texts()
        self.assertEqual("in the only room", taken.pop())
        self.log.info("at last")
        self.assertEqual(["at last", f"{MANY - len(taken)} lines were dropped"], self.syslog.texts())

    def test_stop(self) -> None:
        """A stop sends the number of dropped lines, and doesn't wait for syslog."""
        service = self.start()
        self.overflow()
        taken = self.syslog.texts()
        service.stopService()
        self.assertEqual([f"{MANY - len(taken)} lines were dropped"], self.syslog.texts())
        service.startService()
        self.overflow()
        service.stopService()
        self.assertEqual(taken, self.syslog.texts())

    def test_budget(self) -> None:
        """What senders can cause is bounded; the number of the other lines is sent."""
        service = self.start()
        texts: list[str] = []
        for _ in range(200):
            self.log.info("{text}", text="x" * 7000)
            texts += self.syslog.texts()
        self.assertLess(sum(map(len, texts)), BURST_BYTES)
        service.stopService()
        texts += self.syslog.texts()
        self.assertEqual(
            f"{201 - len(texts)} lines were not logged, to bound the log: {201 - len(texts)} of test",
            texts[-1],
        )


class OneLineTests(unittest.TestCase):
    """A text as one line."""

    def test_what_syslog_cannot_take(self) -> None:
        """NUL and lone surrogates, which syslog refuses, and line ends are escaped."""
        line = one_line("a\x00b\ud800c\u2028d\x1b[0mé")
        self.assertEqual("a\\x00b\\ud800c\\u2028d\\x1b[0mé", line)
        line.encode("utf-8")

    def test_long(self) -> None:
        """A text that is too long keeps its beginning and its end."""
        line = one_line("b" + "x" * 100_000 + "e")
        self.assertLess(len(line), 8100)
        self.assertEqual(("b", "e"), (line[0], line[-1]))
