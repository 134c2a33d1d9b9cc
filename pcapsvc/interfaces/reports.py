"""What the pipeline and deliveries need to report events."""

from __future__ import annotations

from zope.interface import Interface

from pcapsvc.core.event import Event


class IReporter(Interface):
    """Receives every event: what happens to requests, captures and deliveries."""

    def report(event: Event) -> None:
        """Take an event. Never raises, and never waits."""
