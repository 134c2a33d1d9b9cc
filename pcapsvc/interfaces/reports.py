"""What the pipeline and deliveries need to report events, and what channels need to publish them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from pcapsvc.core.event import Event
from pcapsvc.core.report_queue import Report
from pcapsvc.core.source_state import SourceState


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


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """
    What became of events that were to be published. Those that are in neither list are worth another attempt.

    @ivar arrived: those that the broker has.
    @ivar refused: those that it will never accept.
    """

    arrived: Sequence[Report]
    refused: Sequence[Report] = ()


class IPublisher(Interface):
    """Publishes events to one place of one broker. One call at a time."""

    def open() -> Deferred[bool]:
        """
        Connect.

        @return: fires with whether the broker has answered, and not only a client was made; fails with any
            error. On cancel, connecting ends.
        """

    def publish(reports: Sequence[Report]) -> Deferred[Published]:
        """
        Publish events, in order.

        @param reports: one or more, up to L{most} with up to L{most_bytes} unless it is a single one.

        @return: fires when the broker has answered; fails with any error if it is unknown whether they have
            arrived. On cancel, that is unknown, too.
        """

    def when_lost() -> Deferred[None]:
        """
        Wait for the loss of the connection, while nothing is published. It never fires if there is none to be
        lost. Fails with the reason. Cancelling it only ends the wait.
        """

    def close() -> Deferred[None]:
        """Disconnect. Never fails. Fires within a second or two."""

    def described(problem: Exception) -> tuple[str, str]:
        """The kind of a problem, and the problem in words without secrets."""

    server: str = Attribute("The server, for the log.")
    target: str = Attribute("Where it publishes, for the log.")
    most: int = Attribute("How many events are published at once.")
    most_bytes: int = Attribute("How many bytes they may have together.")


class IEventChannel(IProgressReporter):
    """A reporter that publishes events, and keeps them while it can't."""

    name: str = Attribute("Its name in the configuration: C{redis}, C{kafka}, C{sqs}.")
    dropped: int = Attribute("How many events were dropped since the start.")
    waiting: int = Attribute("How many events wait to be published, or for their confirmation.")

    def state() -> SourceState:
        """Whether events can be published now."""
