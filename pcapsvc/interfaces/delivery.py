"""What the pipeline needs of deliveries, and what deliveries need of destinations and of the spool."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from pcapsvc.core.artifact import Artifact
from pcapsvc.core.result import Receipt


class IDestination(Interface):
    """Somewhere a capture can be delivered to."""

    name: str = Attribute("For the log and the events: C{local}, C{cloudshark}, C{s3}.")
    ways: tuple[str, ...] = Attribute("The ways there, one or more: what hangs on one holds up no other.")

    def way(s3: Mapping[str, Any]) -> str:
        """
        Which of the C{ways} a capture goes. Never raises.

        @param s3: what its request says of S3, as in L{Artifact}.
        """

    def store(artifact: Artifact) -> Deferred[Receipt]:
        """
        Deliver a capture, once. To deliver the same artifact again, after an attempt
        that may have arrived, is a success, and should leave one capture there.

        @return: fires with the receipt; fails with L{DestinationError}; on cancel, the
            attempt ends, and may or may not have arrived.
        """


class IDelivery(Interface):
    """Brings captures to all destinations."""

    def deliver(artifact: Artifact, let_go: Callable[[], object]) -> Deferred[None]:
        """
        Deliver a capture to every destination, side by side.

        @param let_go: called once the content is no longer needed, where that is before
            the Deferred fires: it is on the disk.

        @return: fires when each has had its turn: it has the capture, or will not get
            it, or it is kept in the spool for it. Never fails. On cancel, what goes on is
            given up, and told to be.
        """


class ISpool(Interface):
    """Keeps captures on disk for destinations that don't have them yet."""

    def put(
        artifact: Artifact, destination: str, problem: str, asked_seconds: float | None = None
    ) -> Deferred[None]:
        """
        Keep a capture, and deliver it from here.

        @param destination: the name of the destination that it is for.
        @param problem: why it isn't there yet, in words.
        @param asked_seconds: how long the destination asks to be left alone.

        @return: fires when it is on the disk, whole; fails with L{SpoolError}; on
            cancel, it may or may not be kept. Until then its content must stay open.
        """

    def hold(artifact: Artifact, destination: str, problem: str) -> Deferred[IHeldCapture]:
        """
        Keep a capture that somebody else is about to deliver: as L{put}, and fires with it.
        On cancel it is not kept, so that it may be delivered otherwise; where it was just
        being written, it is taken out as soon as the disk is done with it.

        @param problem: what is known of it if the process ends before it is delivered.
        """


class IHeldCapture(Interface):
    """A capture that is kept in the spool, and that the spool itself doesn't deliver."""

    artifact: Artifact = Attribute("The capture, with the content that is on the disk.")

    def delivered() -> Deferred[None]:
        """
        Take it out of the spool.

        @return: fires when no restart will find it again, or when that can't be had for
            now, which is told.
        """

    def release(problem: str, asked_seconds: float | None = None) -> bool:
        """
        Leave it to the spool to deliver it: see L{ISpool.put}.

        @return: whether it will; not where it is gone, as the spool's folder went away.
        """
