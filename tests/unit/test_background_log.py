"""The log that is written in a thread."""

from __future__ import annotations

import os
import threading

from twisted.logger import (
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    LogPublisher,
    eventAsText,
    textFileLogObserver,
)
from twisted.trial import unittest
from zope.interface import implementer

from pcapsvc.core.log_budget import LogBudget
from pcapsvc.core.mask import of_process
from pcapsvc.host.background_log import BackgroundLog, DescriptorStream

_PATIENCE_SECONDS = 180.0


@implementer(ILogObserver)
class Target:
    """What the log is written to: it accepts a line when the test allows it."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.events: list[LogEvent] = []
        self.may_write = threading.Event()
        self.may_write.set()
        self.problem: Exception | None = None

    def __call__(self, event: LogEvent) -> None:
        self.may_write.wait()
        if self.problem is not None:
            raise self.problem
        self.events.append(event)
        self.texts.append(eventAsText(event, includeTimestamp=False, includeSystem=False))


class BackgroundLogTests(unittest.SynchronousTestCase):
    """L{BackgroundLog}, with a target that can hang."""

    def setUp(self) -> None:
        """A log of up to three short lines."""
        self.target = Target()
        self.background = BackgroundLog([self.target], max_characters=3 * 510)
        self.addCleanup(self.target.may_write.set)
        self.log = Logger(namespace="test", observer=LogPublisher(self.background))

    def drain(self) -> None:
        """Wait until all is written."""
        self.target.may_write.set()
        self.assertTrue(self.background.drain(_PATIENCE_SECONDS))

    def test_order(self) -> None:
        """Lines are written in order, with the time, level and namespace of each."""
        self.log.info("one {number}", number=1)
        self.log.warn("two")
        self.drain()
        self.assertEqual(["one 1", "two"], self.target.texts)
        self.assertEqual(
            [(LogLevel.info, "test"), (LogLevel.warn, "test")],
            [(event["log_level"], event["log_namespace"]) for event in self.target.events],
        )

    def test_formatted_at_once(self) -> None:
        """A line says what was true when it was logged."""
        changing = ["before"]
        self.log.info("{what}", what=changing)
        changing[:] = ["after"]
        self.drain()
        self.assertEqual(["['before']"], self.target.texts)

    def test_secrets(self) -> None:
        """Secrets of the configuration are hidden, whoever logs them, and in tracebacks, too."""
        of_process.hide(["hunter22"])
        self.addCleanup(of_process.hide, ())
        self.log.info("AUTH {password!r}", password="hunter22")
        try:
            raise ValueError("wrong: hunter22")
        except ValueError:
            self.log.failure("failed")
        self.drain()
        self.assertEqual("AUTH '<secret>'", self.target.texts[0])
        self.assertIn("ValueError: wrong: <secret>", self.target.texts[1])
        self.assertNotIn("hunter22", str(self.target.events))
        self.flushLoggedErrors(ValueError)

    def test_failures(self) -> None:
        """A failure is written with its traceback."""
        try:
            raise ValueError("a reason")
        except ValueError:
            self.log.failure("it failed")
        self.drain()
        (text,) = self.target.texts
        self.assertTrue(text.startswith("it failed\nTraceback"), text)
        self.assertIn("a reason", text)

    def test_hanging(self) -> None:
        """Beyond the bound, lines are dropped; when the target goes on, the log has their number."""
        self.target.may_write.clear()
        for number in range(10):
            self.log.info("{number}", number=number)
        self.assertFalse(self.background.drain(0))
        self.drain()
        self.assertEqual(
            ["0", "1", "2", "7 lines of the log were dropped, as nothing took them"], self.target.texts
        )
        self.log.info("after")
        self.drain()
        self.assertEqual("after", self.target.texts[-1])

    def test_raising(self) -> None:
        """A line that can't be written is counted, and the next ones are tried again."""
        self.target.problem = OSError("no space left on device")
        for number in range(2):
            self.log.info("{number}", number=number)
            self.drain()
        self.target.problem = None
        self.log.info("after")
        self.drain()
        self.assertEqual(
            ["after", "2 lines of the log were dropped, as nothing took them"], self.target.texts
        )

    def test_long_lines(self) -> None:
        """A very long line loses its middle, and not its end; it is taken though it is over the bound."""
        self.log.info("{text}", text="a" * 100_000 + "end")
        self.drain()
        (text,) = self.target.texts
        self.assertLess(len(text), 70_000)
        self.assertTrue(text.endswith("end"))

    def test_surrogates(self) -> None:
        """Characters that no encoding has are escaped."""
        self.log.info("{text}", text="\udc80 …")
        self.drain()
        self.assertEqual(["\\udc80 …"], self.target.texts)

    def test_logging_while_logging(self) -> None:
        """A finalizer may log at any moment, also while a line is being taken."""

        class Logs:
            def __str__(this) -> str:
                self.log.info("inner")
                return "outer"

        self.log.info("{it}", it=Logs())
        self.drain()
        self.assertEqual(["inner", "outer"], self.target.texts)

    def test_before_the_start(self) -> None:
        """Nothing is written before the start, and nothing of it is lost."""
        self.log.info("early")
        self.assertEqual([], self.target.texts)
        self.background.start()
        self.drain()
        self.assertEqual(["early"], self.target.texts)

    def bounded(self) -> None:
        """Bound what senders can cause to 1,000 bytes."""
        self.now = 0.0
        budget = LogBudget(bytes_a_second=0, burst_bytes=1000)
        self.background = BackgroundLog([self.target], budget=budget, now=lambda: self.now)

    def logger(self, namespace: str) -> Logger:
        """The logger of a module."""
        return Logger(namespace=namespace, observer=LogPublisher(self.background))

    def test_budget(self) -> None:
        """
        Requests and packets leave room for what becomes of captures, and that for errors. The number
        of the lines that were not logged is.
        """
        self.bounded()
        judge, packets = self.logger("pcapsvc.judge"), self.logger("pcapsvc.capture.decode")
        reports = self.logger("pcapsvc.reports.log")
        for _ in range(10):
            judge.info("a request")
            packets.info("{capture_id}: a packet", capture_id="abc")
        for _ in range(10):
            reports.info("{capture_id}: it started", capture_id="abc")
        for _ in range(10):
            reports.error("it failed")
        self.drain()
        kinds = ["a request", "abc: a packet", "abc: it started", "it failed"]
        counts = [self.target.texts.count(kind) for kind in kinds]
        self.assertEqual([3, 2, 2, 2], counts)
        self.assertEqual(
            "31 lines were not logged, to bound the log: 8 of pcapsvc.capture.decode, 7 of pcapsvc.judge,"
            " 16 of pcapsvc.reports.log",
            self.target.texts[-1],
        )

    def test_not_bounded(self) -> None:
        """What nobody outside can cause is logged in any case."""
        self.bounded()
        for namespace in ("pcapsvc.host.signals.Signals", "pcapsvc.lifecycle", "twisted.scripts.x"):
            log = self.logger(namespace)
            for _ in range(100):
                log.info("a line")
        self.drain()
        self.assertEqual(300, len(self.target.texts))


class DescriptorStreamTests(unittest.SynchronousTestCase):
    """L{DescriptorStream}, on a pipe."""

    def setUp(self) -> None:
        """The pipe."""
        self.reader, self.writer = os.pipe()
        self.addCleanup(os.close, self.reader)
        self.addCleanup(os.close, self.writer)

    def test_observer(self) -> None:
        """Twisted's observer writes text to it; what the encoding lacks is escaped."""
        log = Logger(
            namespace="test",
            observer=LogPublisher(textFileLogObserver(DescriptorStream(self.writer, "latin-1"))),
        )
        log.info("ü … 1")
        self.assertTrue(os.read(self.reader, 1000).endswith(b" [test#info] \xfc \\u2026 1\n"))

    def test_not_blocking(self) -> None:
        """If somebody else has set the descriptor not to block, all of a text is written all the same."""
        os.set_blocking(self.writer, False)
        text = "0123456789" * 30_000
        found: list[bytes] = []

        def read() -> None:
            while sum(map(len, found)) < len(text):
                found.append(os.read(self.reader, 65536))

        thread = threading.Thread(target=read)
        thread.start()
        self.assertEqual(len(text), DescriptorStream(self.writer, "utf-8").write(text))
        thread.join(_PATIENCE_SECONDS)
        self.assertEqual(text, b"".join(found).decode())
