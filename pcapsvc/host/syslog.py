"""Sends the log to the local syslog, one line an event."""

from __future__ import annotations

import os
import re
import socket

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

# Where the local syslog listens, for datagrams.
_ADDRESS = "/dev/log"

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

#: The severity that a level has at least (RFC 5424, section 6.2.1, table 2): the less, the worse.
_SEVERITIES = {LogLevel.warn: 4, LogLevel.error: 3, LogLevel.critical: 2}


@implementer(ILogObserver)
class SyslogService(Service):
    """
    While it runs, each event of the log is one line in the local syslog.

    What is only for debugging is left out: syslog is what people watch. Nothing
    waits for syslog: a line that it doesn't take at once is lost. The lines lost
    are counted, and their number is a line after the next one that is taken.

    @param priority: facility × 8 + severity (RFC 5424, section 6.2.1) of the
        lines; a warning or an error is made as severe as it is, where the
        configured severity is less.
    @param tag: what stands at the beginning of each line, before the process's id.
    @param address: the path of the datagram socket that syslog reads.
    """

    name = "syslog"

    def __init__(
        self,
        priority: int,
        tag: str,
        *,
        address: str = _ADDRESS,
        publisher: LogPublisher = globalLogPublisher,
    ) -> None:
        self._facility, self._severity = priority & ~7, priority & 7
        self._tag = tag
        self._address = address
        self._publisher = publisher
        self._socket: socket.socket | None = None
        self._lost = 0

    def startService(self) -> None:
        """Begin to send."""
        super().startService()  # type: ignore[no-untyped-call]
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._publisher.addObserver(self)

    def stopService(self) -> None:
        """Send no more."""
        super().stopService()  # type: ignore[no-untyped-call]
        self._publisher.removeObserver(self)
        if self._socket is not None:
            self._tell_lost()
            self._socket.close()
            self._socket = None

    def __call__(self, event: LogEvent) -> None:
        """Send one event. Never waits, and raises nothing."""
        level = event.get("log_level", LogLevel.info)
        if level is LogLevel.debug:
            return
        line = one_line(eventAsText(event, includeTimestamp=False, includeSystem=False))
        if not line:
            return
        if self._send(_SEVERITIES.get(level, 7), line):
            self._tell_lost()
        else:
            self._lost += 1

    def _tell_lost(self) -> None:
        if self._lost:
            told = "1 line was lost" if self._lost == 1 else f"{self._lost} lines were lost"
            if self._send(_SEVERITIES[LogLevel.warn], told):
                self._lost = 0

    def _send(self, severity: int, line: str) -> bool:
        """Whether syslog takes the line, at once."""
        if self._socket is None:
            return False
        # Without a time, as logging.handlers.SysLogHandler: who reads a local socket has his own.
        priority = self._facility | min(self._severity, severity)
        message = f"<{priority}>{self._tag}[{os.getpid()}]: {line}".encode()
        try:
            # By its address each time: a syslog that was started anew has another socket there.
            self._socket.sendto(message, self._address)
        except OSError:
            # EAGAIN: what it has not read yet is as much as it may be (unix(7)). Or it isn't there.
            return False
        return True


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
