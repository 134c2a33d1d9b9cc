"""
Files that are sent piece by piece, as fast as a client reads.

The next piece is read when the last one is on its way. So a client that reads slowly costs nothing but its
connection.
"""

# Twisted has hardly any types for failures.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer

from pcapsvc.capture_files import CaptureFile, FileFreed
from pcapsvc.interfaces.threads import RunInThread
from pcapsvc.net.http_resource import AnswerCut
from pcapsvc.threads import NotRunning
from pcapsvc.web.stream import Stream

#: How much is read at once, in bytes: from memory, and from a disk.
MEMORY_CHUNK_BYTES = 64 * 1024
DISK_CHUNK_BYTES = 256 * 1024

#: How often a file that grows is looked at, in seconds.
FOLLOW_SECONDS = 0.1


@implementer(IBodyProducer)
class MemoryStream(Stream):
    """
    A part of a file in memory. If it is freed before all of it was sent, the stream is cut.

    @param first: where it begins.
    @param end: where it ends; L{None} is where the file ends, which is waited for.
    """

    def __init__(self, reactor: Any, file: CaptureFile, first: int, end: int | None) -> None:
        self._reactor = reactor
        self._file = file
        self._at = first
        self._stop_at = end
        self._timer: Any = None
        self._is_busy = False
        self._unwatch: Callable[[], None] = lambda: None
        self.length: Any = UNKNOWN_LENGTH if end is None else end - first

    def startProducing(self, consumer: Any) -> Deferred[None]:
        """See L{IBodyProducer}."""
        self._unwatch = self._file.watch(self._go_on)
        return super().startProducing(consumer)

    def stopProducing(self) -> None:
        """See L{IBodyProducer}."""
        super().stopProducing()
        self._unwatch()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _go_on(self) -> None:
        # What is sent may pause the stream, or free the file.
        if self._is_busy or self._done is None:
            return
        self._is_busy = True
        try:
            is_all = self._send()
        except FileFreed:
            self._end(Failure(AnswerCut()))
        except Exception:  # noqa: BLE001 - whatever it is, this stream ends, and nothing else does
            self._end(Failure())
        else:
            if is_all:
                self._end()
        finally:
            self._is_busy = False

    def _send(self) -> bool:
        """Send what there is, as long as the client reads. Return whether that is all there will be."""
        while not self._is_paused and self._done is not None:
            # In this order: its end comes with its last packets.
            is_growing = self._stop_at is None and self._file.is_running
            end = self._file.whole_bytes() if self._stop_at is None else self._stop_at
            if self._at >= end:
                if not is_growing:
                    return True
                self._look_again()
                return False
            piece = self._file.read_at(self._at, min(MEMORY_CHUNK_BYTES, end - self._at))
            if not piece:
                raise FileFreed
            self._at += len(piece)
            self._consumer.write(piece)
        return False

    def _look_again(self) -> None:
        if self._timer is None:
            self._timer = self._reactor.callLater(FOLLOW_SECONDS, self._look)

    def _look(self) -> None:
        self._timer = None
        self._go_on()


class CopyStream(MemoryStream):
    """
    A file in memory that is freed as soon as it was sent, or is not wanted any more.

    @param release: called then.
    """

    def __init__(self, reactor: Any, file: CaptureFile, release: Callable[[], object]) -> None:
        super().__init__(reactor, file, 0, file.whole_bytes())
        self._release = release

    def stopProducing(self) -> None:
        """See L{IBodyProducer}."""
        super().stopProducing()
        self._release()


class DiskFile:
    """
    A file that is open, and is read in threads, as the disk may hang.

    @ivar size: in bytes.
    """

    def __init__(self, run_in_thread: RunInThread, descriptor: int, size: int) -> None:
        self._run_in_thread = run_in_thread
        self._descriptor = descriptor
        self._is_reading = False
        self._is_closed = False
        self.size = size

    @classmethod
    async def open(cls, run_in_thread: RunInThread, path: str) -> DiskFile:
        """
        Open a regular file.

        @raise OSError: if it can't be opened, or is anything else.
        """
        descriptor, size = await run_in_thread(_open, path)
        return cls(run_in_thread, descriptor, size)

    async def read_at(self, offset: int, count: int) -> bytes:
        """
        Up to C{count} bytes from C{offset} on. To be called again only after it has returned.

        @raise OSError: if they can't be read.
        """
        self._is_reading = True
        try:
            data: bytes = await self._run_in_thread(os.pread, self._descriptor, count, offset)
            return data
        finally:
            self._is_reading = False
            if self._is_closed:
                self._close()

    def close(self) -> None:
        """Close it, once it isn't read any more. A second call does nothing."""
        if not self._is_closed:
            self._is_closed = True
            if not self._is_reading:
                self._close()

    def _close(self) -> None:
        descriptor = self._descriptor

        def not_closed(failure: Failure) -> None:
            # After any other failure, a thread has closed it.
            if isinstance(failure.value, NotRunning):
                os.close(descriptor)

        self._run_in_thread(os.close, descriptor).addErrback(not_closed)


@implementer(IBodyProducer)
class DiskStream(Stream):
    """
    A part of a file on a disk.

    @param file: owned from here on.
    """

    _log = Logger()

    def __init__(self, file: DiskFile, first: int, end: int) -> None:
        self._file = file
        self._at = first
        self._stop_at = end
        self._reading: Deferred[None] | None = None
        self.length: Any = end - first

    def stopProducing(self) -> None:
        """See L{IBodyProducer}."""
        super().stopProducing()
        self._file.close()

    def _go_on(self) -> None:
        if self._reading is None:
            reading = Deferred.fromCoroutine(self._send())
            if not reading.called:
                self._reading = reading

    async def _send(self) -> None:
        try:
            while not self._is_paused and self._done is not None:
                if self._at >= self._stop_at:
                    self._end()
                    return
                piece = await self._file.read_at(self._at, min(DISK_CHUNK_BYTES, self._stop_at - self._at))
                if not piece:
                    raise OSError("the file is shorter than it was")
                if self._done is not None:
                    self._at += len(piece)
                    self._consumer.write(piece)
        except OSError as error:
            self._log.warn("HTTP: the rest of a file can't be read: {error}", error=error)
            self._end(Failure(AnswerCut()))
        except Exception:  # noqa: BLE001 - such as threads that have stopped
            self._end(Failure(AnswerCut()))
        finally:
            self._reading = None


def _open(path: str) -> tuple[int, int]:
    # Links are not followed, and pipes don't block (open(2)).
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise OSError("it is not a regular file")
    return descriptor, found.st_size
