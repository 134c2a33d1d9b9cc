"""Sends the log to the local syslog, one line per event."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable

from twisted.application.service import Service
from twisted.logger import (
    ILogObserver,
    LogEvent,
    LogLevel,
    LogPublisher,
    globalLogPublisher,
)
from zope.interface import implementer

from pcapsvc.core.log_budget import LogBudget
from pcapsvc.core.text import SURROGATES
from pcapsvc.host.log_limit import importance_of, kind_of
from pcapsvc.host.log_text import text_of

# RFC 3164, section 4.1, has relays accept 1024 bytes. Today's accept 8 KiB (rsyslog's $MaxMessageSize)
# and more. The longest lines are tracebacks, whose ends matter most.
_MAX_CHARACTERS = 8000

# The datagram socket of the local syslog.
_ADDRESS = "/dev/log"

_CONTROL = re.compile(rf"[\x00-\x1f\x7f-\x9f\u2028\u2029{SURROGATES}]")

# The least severity of each level (RFC 5424, section 6.2.1, table 2). Lower numbers are more severe.
_SEVERITIES = {LogLevel.warn: 4, LogLevel.error: 3, LogLevel.critical: 2}


@implementer(ILogObserver)
class SyslogService(Service):
    """
    While it runs, each event of the log is sent to the local syslog as one line. Debug events are
    not sent.

    Nothing waits for syslog: a line that it doesn't accept at once is dropped. Dropped lines are
    counted, and their number is sent after the next line that is accepted. So is the number of lines that
    a budget refuses, which bounds what senders of requests and packets can cause to be logged.

    @param priority: facility × 8 + severity of the lines (RFC 5424, section 6.2.1). Warnings and
        errors are sent with their own severity if that is more severe.
    @param tag: the beginning of each line, before the process id.
    @param address: the path of syslog's datagram socket.
    @param now: the time in seconds, by a clock that never goes back.
    """

    name = "syslog"

    def __init__(
        self,
        priority: int,
        tag: str,
        *,
        address: str = _ADDRESS,
        publisher: LogPublisher = globalLogPublisher,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._facility, self._severity = priority & ~7, priority & 7
        self._tag = tag
        self._address = address
        self._publisher = publisher
        self._socket: socket.socket | None = None
        self._dropped = 0
        self._budget = LogBudget()
        self._now = now

    def startService(self) -> None:
        """Start sending."""
        super().startService()  # type: ignore[no-untyped-call]
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._publisher.addObserver(self)

    def stopService(self) -> None:
        """Stop sending."""
        super().stopService()  # type: ignore[no-untyped-call]
        self._publisher.removeObserver(self)
        if self._socket is not None:
            self._report_dropped()
            self._report_refused(at_once=True)
            self._socket.close()
            self._socket = None

    def __call__(self, event: LogEvent) -> None:
        """Send one event. Never waits, and never raises."""
        level = event.get("log_level", LogLevel.info)
        if level is LogLevel.debug:
            return
        importance = importance_of(event)
        if importance is not None and not self._budget.allows(importance, kind_of(event), self._now()):
            return
        line = one_line(text_of(event))
        if not line:
            return
        if importance is not None:
            self._budget.charge(len(line.encode()))
        if self._send(_SEVERITIES.get(level, 7), line):
            self._report_dropped()
            self._report_refused()
        else:
            self._dropped += 1

    def _report_dropped(self) -> None:
        if self._dropped:
            report = "1 line was dropped" if self._dropped == 1 else f"{self._dropped} lines were dropped"
            if self._send(_SEVERITIES[LogLevel.warn], report):
                self._dropped = 0

    def _report_refused(self, *, at_once: bool = False) -> None:
        report = self._budget.report(self._now(), at_once=at_once)
        if report is not None:
            self._send(_SEVERITIES[LogLevel.warn], report)

    def _send(self, severity: int, line: str) -> bool:
        """Whether syslog accepted the line."""
        if self._socket is None:
            return False
        # Without a time, like logging.handlers.SysLogHandler: the reader of a local socket adds its own.
        priority = self._facility | min(self._severity, severity)
        message = f"<{priority}>{self._tag}[{os.getpid()}]: {line}".encode()
        try:
            # To its path each time: after a restart of syslog there is a new socket.
            self._socket.sendto(message, self._address)
        except OSError:
            # EAGAIN: its queue is full (unix(7), max_dgram_qlen). Or there is no syslog.
            return False
        return True


def one_line(text: str) -> str:
    """
    A text as one line of printable characters. Control characters, and those that UTF-8 can't
    encode, are escaped as in Python strings. If the text is too long, its middle is cut out.
    """
    line = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text.strip())
    if len(line) > _MAX_CHARACTERS:
        half = _MAX_CHARACTERS // 2
        line = f"{line[:half]} … {line[-half:]}"
    return line
