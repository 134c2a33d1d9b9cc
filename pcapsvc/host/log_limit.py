"""
Bounds what is logged, so that nobody who may send requests or packets can fill the disk.

The bound is where lines leave for the log, and not where they originate: whatever the next part logs
about a request is bounded from the beginning.
"""

from __future__ import annotations

from twisted.logger import LogEvent, LogLevel

from pcapsvc.core.log_budget import Importance

# What nobody outside can cause: how the daemon starts, stops and sees its host.
_UNBOUNDED = ("pcapsvc.host.", "pcapsvc.lifecycle", "twisted.application.", "twisted.scripts.")
_MANHOLE = "pcapsvc.host.manhole"
# One capture's packets are as many as senders like, although their lines have its id.
_PACKETS = "pcapsvc.capture.decode"


def kind_of(event: LogEvent) -> str:
    """What an event is about, for a report: the part that logged it."""
    return str(event.get("log_namespace", "-"))


def importance_of(event: LogEvent) -> Importance | None:
    """How important an event is. L{None} if it is logged in any case."""
    namespace = kind_of(event)
    if namespace.startswith(_MANHOLE):
        return Importance.ERROR
    if namespace.startswith(_UNBOUNDED):
        return None
    if event.get("log_level", LogLevel.info) >= LogLevel.error:
        return Importance.ERROR
    if "capture_id" in event and not namespace.startswith(_PACKETS):
        return Importance.CAPTURE
    return Importance.NOISE
