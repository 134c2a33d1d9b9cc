"""What reports an event."""

from __future__ import annotations

from zope.interface import Interface

from pcapsvc.core.result import Event


class IReporter(Interface):
    """Somebody who wants to hear what becomes of requests."""

    def report(event: Event) -> None:
        """Take note of an event. Never raises."""
