"""A file that is read in threads."""

from __future__ import annotations

from typing import Any, BinaryIO, Protocol

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from pcapsvc.interfaces.threads import RunInThread
from pcapsvc.threads import NotRunning

CHUNK_BYTES = 256 * 1024


class IDigest(Protocol):
    """What a checksum is computed with, as those of hashlib and hmac."""

    def update(self, data: bytes, /) -> None:
        """Go on with these bytes."""


class ThreadedFile:
    """
    A file that is read in a thread, which has it for itself until it is done.

    @param digest: is given all that is read; L{None} if nothing is to be computed.
    """

    def __init__(self, file: BinaryIO, run_in_thread: RunInThread, digest: IDigest | None = None) -> None:
        self._file = file
        self._run_in_thread = run_in_thread
        self._digest = digest
        self._reading: Deferred[bytes] | None = None

    async def read(self, most: int = CHUNK_BYTES) -> bytes:
        """Up to so many bytes; none at the end of the file. There is one call at a time."""
        # The thread goes on if nobody waits for it any more.
        reading = self._reading = self._run_in_thread(self._read, most)
        waiting: Deferred[bytes] = Deferred()

        def done(result: Any) -> None:
            self._reading = None
            if not waiting.called:
                waiting.callback(result)

        reading.addBoth(done)
        return await waiting

    def _read(self, most: int) -> bytes:
        chunk = self._file.read(most)
        if self._digest is not None:
            self._digest.update(chunk)
        return chunk

    def close(self) -> None:
        """Close the file, once no thread reads it any more."""
        if self._reading is not None:
            self._reading.addBoth(lambda _: self.close())
            return

        def close_here(failure: Failure) -> None:
            # Threads that don't run are no reason to keep it open.
            if failure.check(NotRunning):  # type: ignore[no-untyped-call]
                self._file.close()

        self._run_in_thread(self._file.close).addErrback(close_here)
