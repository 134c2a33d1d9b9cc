"""What the pipeline needs of deliveries, and what deliveries need of destinations and of the spool."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from pcapsvc.core.artifact import Artifact
from pcapsvc.core.errors import Problem
from pcapsvc.core.kept_file import KeptFiles
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

        @param recording: its content stays open until the Deferred has fired; if that is with a
            L{GeneratedFile<pcapsvc.generated_file.GeneratedFile>}, until that is closed.

        @return: fires with the file's content; fails with L{EncoderError}; on cancel, with
            L{twisted.internet.defer.CancelledError}.
        """


class IDestination(Interface):
    """Somewhere a capture can be delivered to."""

    name: str = Attribute("For the log and the events: C{local}, C{cloudshark}, C{s3} and so on.")
    routes: tuple[str, ...] = Attribute("One or more. What hangs on one of them delays no other.")

    def route(options: Mapping[str, Any]) -> str | None:
        """
        Which of the C{routes} is used for a capture; L{None} if it is not for this destination, which
        then has nothing to do with it. Never raises.

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


class IReadableStore(IDestination):
    """A destination whose captures this host can read."""

    def path(location: str) -> str | None:
        """
        The path of a capture; L{None} if it is known to be removed.

        @param location: of its receipt.
        """

    def kept() -> KeptFiles | None:
        """What it keeps; L{None} if it removes nothing by itself."""


class IDelivery(Interface):
    """Delivers captures to all destinations."""

    def deliver(artifact: Artifact, on_disk: Callable[[], object]) -> Deferred[None]:
        """
        Deliver a capture to every destination, independently of each other.

        @param on_disk: called when the content is no longer needed because it is on disk, if that is before
            the Deferred fires.

        @return: fires when the capture is delivered, spooled or lost for each destination. Never fails. On
            cancel, what goes on is cancelled, and reported.
        """
