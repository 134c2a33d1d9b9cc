"""What an outbox needs of the spool."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from zope.interface import Interface

from pcapsvc.core.artifact import Artifact
from pcapsvc.delivery.entry import Entry


class ISpool(Interface):
    """Stores captures on disk for destinations that don't have them yet."""

    def write(entry: Entry, artifact: Artifact, problem: str) -> Deferred[Artifact]:
        """
        Write the capture of an entry that is C{WRITING_AHEAD} or C{SPOOLING}. When it is on disk, whole, the
        entry moves on, and has C{spooled} and C{problem}. Until then, the content must stay open.

        @param problem: why it is not delivered yet.

        @return: fires with the artifact, with its content on disk; fails with
            L{SpoolError<pcapsvc.core.errors.SpoolError>}. On cancel, a capture that is being written ahead
            is removed again as soon as the disk allows, unless the service stops: it will be delivered from
            memory. One that is to be spooled stays, and is found after the next start.
        """

    def read(entry: Entry) -> Deferred[Artifact]:
        """
        Read an entry that was taken, and check every byte of it.

        @return: fires with the artifact; fails with L{SpoolError<pcapsvc.core.errors.SpoolError>}. If it is
            not what was written, it is C{QUARANTINED} then, which is reported.
        """

    def remove(entry: Entry) -> Deferred[None]:
        """
        Remove an entry that is C{REMOVING}, because it was delivered.

        @return: fires when no restart will find it again, or if it can't be removed for now, which is
            logged. On cancel, it may or may not be removed.
        """

    def put_back(entry: Entry) -> bool:
        """
        Leave an entry that was taken to the spool.

        @return: whether the spool has it. Otherwise it is C{LOST}, which the caller reports.
        """

    def due(destination: str) -> list[Entry]:
        """The entries that are to be delivered to a destination now, the oldest first."""

    def destinations() -> set[str]:
        """The names of all destinations that the spool has captures for."""

    def tidy() -> Deferred[None]:
        """
        Open the directory if it is not open, and remove what is too old.

        @return: fires when that is done, or failed, which is logged. Never fails.
        """

    def end_listing() -> None:
        """
        End the listing of the directory, if it is still in progress: a stop has begun. Captures can still be
        written.
        """
