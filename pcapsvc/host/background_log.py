"""
Writes the log in a thread, so that a log which nobody reads stops nothing else.

Standard output may be a pipe whose reader hangs, a terminal after Ctrl-S or a stuck journal; a log
file may be on a disk that hangs; and syslog(3) waits as well. C{twistd} chooses one of them, and
would write to it from the reactor.
"""

from __future__ import annotations

import atexit
import io
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import Any

from twisted.application.service import Service
from twisted.logger import (
    ILogObserver,
    LogBeginner,
    LogEvent,
    LogLevel,
    globalLogBeginner,
)
from zope.interface import implementer

from pcapsvc.core.errors import PcapsvcError
from pcapsvc.core.log_budget import REPORT_SECONDS, LogBudget
from pcapsvc.host.log_limit import importance_of, kind_of
from pcapsvc.host.log_text import text_of

#: How much text may wait for the log. More is dropped.
MAX_WAITING_CHARACTERS = 1024 * 1024
#: A longer line loses its middle.
_MAX_LINE_CHARACTERS = 64 * 1024
# What an event takes beside its text.
_EVENT_CHARACTERS = 500
# What the time, the level and so on take in a line.
_HEADER_BYTES = 100
#: How long the end of the process waits until the last lines are written.
DRAIN_SECONDS = 2.0
# What an observer uses of an event, beside its text.
_HEADER = ("log_time", "log_level", "log_namespace", "log_system", "isError", "time", "system")


class LogUnusable(PcapsvcError):
    """The log can't be written."""


@implementer(ILogObserver)
class BackgroundLog:
    """
    Passes events to other observers, in a thread of its own. An event is formatted at once, and only
    its text waits.

    Up to L{MAX_WAITING_CHARACTERS} wait. If there is more, all lines are dropped until nothing waits;
    then the log has the number of the dropped lines. What senders of requests and packets can cause to
    be logged is bounded by a budget; it is logged how many lines that refused.

    @param observers: are called in the thread; they may wait for as long as they like. If one
        raises an exception, the line counts as dropped.
    @param now: the time in seconds, by a clock that never goes back.
    """

    def __init__(
        self,
        observers: Iterable[ILogObserver],
        *,
        max_characters: int = MAX_WAITING_CHARACTERS,
        budget: LogBudget | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._observers = tuple(observers)
        self._max_characters = max_characters
        # May be entered again: the collector runs finalizers anywhere, and these may log.
        self._lock = threading.RLock()
        # L{None} has the thread look what there is to report.
        self._waiting: SimpleQueue[LogEvent | threading.Event | None] = SimpleQueue()
        self._budget = budget or LogBudget()
        self._now = now
        self._characters = 0
        self._dropped = 0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """
        Begin to write. Until then, events wait: threads don't survive a fork, and C{twistd} logs
        before it becomes a daemon. A second call does nothing.

        @raise LogUnusable: if no thread can be started.
        """
        with self._lock:
            if self._thread is None:
                # A daemon thread: the interpreter doesn't wait for it at the end.
                thread = threading.Thread(target=self._write_all, name="log", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    raise LogUnusable(f"the log can't be written: {error}") from None
                self._thread = thread

    def __call__(self, event: LogEvent) -> None:
        """Take an event. Never waits, and never raises."""
        importance = importance_of(event)
        if importance is not None:
            with self._lock:
                is_first = not self._budget.has_report()
                if not self._budget.allows(importance, kind_of(event), self._now()):
                    if is_first:
                        self._waiting.put(None)
                    return
        line = _flat(event)
        size = _size(line)
        with self._lock:
            if importance is not None:
                self._budget.charge(len(line["text"].encode()) + _HEADER_BYTES)
            if self._characters and (self._dropped or self._characters + size > self._max_characters):
                self._dropped += 1
                return
            self._characters += size
            self._waiting.put(line)

    def drain(self, seconds: float = DRAIN_SECONDS) -> bool:
        """
        Wait until all that waits is written.

        @param seconds: how long to wait.

        @return: whether it is.
        """
        self.start()
        written = threading.Event()
        self._waiting.put(written)
        return written.wait(seconds)

    def _write_all(self) -> None:
        while True:
            try:
                line = self._waiting.get(timeout=REPORT_SECONDS if self._budget.has_report() else None)
            except Empty:
                line = None
            if isinstance(line, threading.Event):
                self._report_refused(at_once=True)
                line.set()
            elif line is None:
                self._report_refused()
            else:
                self._write_line(line)

    def _write_line(self, line: LogEvent) -> None:
        lost = not self._write(line)
        with self._lock:
            self._characters -= _size(line)
            self._dropped += lost
            dropped = 0 if self._characters else self._dropped
        if dropped and self._write(_report(_dropped_lines(dropped))):
            with self._lock:
                self._dropped -= dropped
        self._report_refused()

    def _report_refused(self, *, at_once: bool = False) -> None:
        with self._lock:
            report = self._budget.report(self._now(), at_once=at_once)
        if report is not None:
            self._write(_report(report))

    def _write(self, line: LogEvent) -> bool:
        try:
            for observer in self._observers:
                # Observers may change an event.
                observer(dict(line))
        except Exception:  # noqa: BLE001 - a full disk, a pipe without a reader: counted, and reported later
            return False
        return True


class BackgroundLogService(Service):
    """Has a L{BackgroundLog} write from the start on. It goes on to the end of the process."""

    name = "log"

    def __init__(self, log: Callable[[], BackgroundLog | None]) -> None:
        """
        @param log: returns the log; L{None} if logging has not begun through it.
        """
        self._log = log

    def privilegedStartService(self) -> None:
        """Begin to write. The process has become a daemon by now."""
        if (log := self._log()) is not None:
            log.start()


class DescriptorStream(io.TextIOBase):
    """
    A text stream that writes to a descriptor at once, with no buffer and no lock. At its end, the
    interpreter flushes buffered streams, and aborts if a thread hangs in one of them.

    A character that the encoding lacks is escaped.

    @param descriptor: may be set not to wait by others, as it may be shared with them; it is waited for.
    """

    def __init__(self, descriptor: int, encoding: str) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding."""
        return self._encoding

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, text: str) -> int:
        """Write a text, all of it."""
        left = memoryview(text.encode(self._encoding, "backslashreplace"))
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()
        return len(text)


def log_in_background(beginner: LogBeginner = globalLogBeginner) -> BackgroundLogService:
    """
    Have a thread write the log, wherever C{twistd} is told to send it.

    To be called before C{twistd} begins to log, which is after it has made the service. There is no
    other place for it: C{twistd} chooses its observer by its own options, and adds it itself.

    @return: what begins to write; to be started with the process.
    """
    begun: list[BackgroundLog] = []
    begin = beginner.beginLoggingTo

    def begin_in_background(observers: Iterable[ILogObserver], *args: Any, **keywords: Any) -> None:
        if begun:
            begin(observers, *args, **keywords)
            return
        begun.append(BackgroundLog(observers))
        atexit.register(begun[0].drain)
        begin(begun, *args, **keywords)

    beginner.beginLoggingTo = begin_in_background  # type: ignore[method-assign]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.flush()
        sys.stdout = DescriptorStream(sys.stdout.fileno(), sys.stdout.encoding)
    return BackgroundLogService(lambda: begun[0] if begun else None)


def _flat(event: LogEvent) -> LogEvent:
    """An event with the same header, and a text that needs no formatting."""
    text = text_of(event)
    if len(text) > _MAX_LINE_CHARACTERS:
        half = _MAX_LINE_CHARACTERS // 2
        text = f"{text[:half]} … {text[-half:]}"
    # No encoding has surrogates.
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    line: LogEvent = {key: event[key] for key in _HEADER if key in event}
    if "log_failure" in event:
        line.setdefault("isError", 1)
    return {**line, "log_format": "{text}", "text": text}


def _report(text: str) -> LogEvent:
    return {
        "log_time": time.time(),
        "log_level": LogLevel.warn,
        "log_namespace": __name__,
        "log_format": "{text}",
        "text": text,
    }


def _dropped_lines(dropped: int) -> str:
    lines = "1 line of the log was" if dropped == 1 else f"{dropped} lines of the log were"
    return f"{lines} dropped, as nothing took them"


def _size(line: LogEvent) -> int:
    return len(line["text"]) + _EVENT_CHARACTERS
