"""Sends the log to the local syslog, one line an event."""

from __future__ import annotations

import re
import syslog
from typing import Protocol

from twisted.application.service import Service
from twisted.logger import (
    ILogObserver,
    LogEvent,
    LogLevel,
    LogPublisher,
    eventAsText,
    globalLogPublisher,
)
from zope.interface import implementer

# RFC 3164, section 4.1: what a relay takes at least is 1024 bytes. Today's take 8 KiB (rsyslog's
# $MaxMessageSize) and more, and the longest lines are tracebacks, whose end says the most.
_MOST_CHARACTERS = 8000

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

#: The severity that a level has at least (RFC 5424, section 6.2.1, table 2): the less, the worse.
_SEVERITIES = {LogLevel.warn: 4, LogLevel.error: 3, LogLevel.critical: 2}


class SyslogModule(Protocol):
    """What is used of the standard library's module C{syslog}."""

    def openlog(self, ident: str, logoption: int, facility: int, /) -> None:
        """Say who we are."""

    def syslog(self, priority: int, message: str, /) -> None:
        """Send one message."""

    def closelog(self) -> None:
        """Let go of the connection."""


@implementer(ILogObserver)
class SyslogService(Service):
    """
    While it runs, each event of the log is one line in the local syslog.

    What is only for debugging is left out: syslog is what people watch.

    @param priority: facility × 8 + severity (RFC 5424, section 6.2.1) of the
        lines; a warning or an error is made as severe as it is, where the
        configured severity is less.
    @param tag: what stands at the beginning of each line, before the process's id.
    @param module: the standard library's C{syslog}, or a stand-in.
    """

    name = "syslog"

    def __init__(
        self,
        priority: int,
        tag: str,
        *,
        module: SyslogModule | None = None,
        publisher: LogPublisher = globalLogPublisher,
    ) -> None:
        self._facility, self._severity = priority & ~7, priority & 7
        self._tag = tag
        self._syslog: SyslogModule = syslog if module is None else module
        self._publisher = publisher

    def startService(self) -> None:
        """Begin to send."""
        super().startService()  # type: ignore[no-untyped-call]
        self._syslog.openlog(self._tag, syslog.LOG_PID, self._facility)
        self._publisher.addObserver(self)

    def stopService(self) -> None:
        """Send no more."""
        super().stopService()  # type: ignore[no-untyped-call]
        self._publisher.removeObserver(self)
        self._syslog.closelog()

    def __call__(self, event: LogEvent) -> None:
        """Send one event."""
        level = event.get("log_level", LogLevel.info)
        if level is LogLevel.debug:
            return
        line = one_line(eventAsText(event, includeTimestamp=False, includeSystem=False))
        if line:
            severity = min(self._severity, _SEVERITIES.get(level, 7))
            self._syslog.syslog(self._facility | severity, line)


def one_line(text: str) -> str:
    """
    A text as one line of printable characters: what would break it, or would not
    go over the wire, is escaped as in a string of Python. Cut in its middle where
    it is too long.
    """
    line = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text.strip())
    if len(line) > _MOST_CHARACTERS:
        half = _MOST_CHARACTERS // 2
        line = f"{line[:half]} … {line[-half:]}"
    return line
