"""What the pipeline needs of deliveries, and what deliveries need of destinations and of the spool."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from pcapsvc.core.artifact import Artifact
from pcapsvc.core.errors import Problem
from pcapsvc.core.recording import Content, Recording
from pcapsvc.core.result import Receipt


class IEncoder(Interface):
    """Makes the file that is delivered from a recording."""

    name: str = Attribute("Its name in the configuration.")
    suffix: str = Attribute("The suffix of the file's name, with the dot. Up to 40 characters.")
    media_type: str = Attribute("The file's media type (RFC 6838).")

    def encode(recording: Recording) -> Deferred[Content]:
        """
        Encode a recording. The caller closes the recording's content and the result, which may be
        the same. If this fails or is cancelled, the encoder closes all else that it opened.

        @param recording: its content stays open until the Deferred has fired.

        @return: fires with the file's content; fails with L{EncoderError}; on cancel, with
            L{twisted.internet.defer.CancelledError}.
        """


class IDestination(Interface):
    """Somewhere a capture can be delivered to."""

    name: str = Attribute("For the log and the events: C{local}, C{cloudshark}, C{s3}.")
    routes: tuple[str, ...] = Attribute("One or more. What hangs on one of them delays no other.")

    def route(options: Mapping[str, Any]) -> str:
        """
        Which of the C{routes} a capture takes. Never raises.

        @param options: what its request says of this destination, by field. They may break any rule.
        """

    def check(options: Mapping[str, Any]) -> Iterator[Problem]:
        """
        Everything that is wrong with what a request says of this destination. A capture with a problem
        is not delivered: it may come from the spool, and what was allowed before need not be allowed now.

        @param options: by field; of any type that JSON has.
        """

    def store(artifact: Artifact) -> Deferred[Receipt]:
        """
        Deliver a capture, once. L{check} has accepted its options. To deliver the same artifact again,
        after an attempt that may have arrived, is a success, and should leave one capture there.

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
