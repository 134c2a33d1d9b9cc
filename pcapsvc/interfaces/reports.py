"""What the pipeline and deliveries need to report events."""

from __future__ import annotations

from zope.interface import Interface

from pcapsvc.core.event import Event


class IReporter(Interface):
    """Receives every event: what happens to requests, captures and deliveries."""

    def report(event: Event) -> None:
        """
        Take an event. Never raises, and never waits. L{CaptureProgress<pcapsvc.core.event.CaptureProgress>}
        is passed to an L{IProgressReporter} only.
        """


class IProgressReporter(IReporter):
    """Receives the progress of captures as well."""

    def wants_progress() -> bool:
        """Whether it has a use for progress now. If nobody has, there are no such events."""
