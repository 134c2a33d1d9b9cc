"""The form that is uploaded, streamed."""

from __future__ import annotations

from typing import Any, BinaryIO

from treq.multipart import MultiPartProducer
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer
from twisted.internet.task import Cooperator
from twisted.python.failure import Failure
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from pcapsvc.core.artifact import Artifact
from pcapsvc.interfaces.threads import RunInThread

_CHUNK_BYTES = 256 * 1024


@implementer(IBodyProducer)
class Form:
    """
    A form with a capture and its tags. It can be stopped at any time.

    @param run_in_thread: reads and closes the capture, whose disk may hang.
    @param cooperator: for what is not read from a file.
    @ivar content_type: its media type.
    """

    def __init__(self, artifact: Artifact, *, run_in_thread: RunInThread, cooperator: Cooperator) -> None:
        size = artifact.content.size
        self._file = _FileProducer(artifact.content.open(), size, run_in_thread)
        self._producer = MultiPartProducer(
            [
                ("additional_tags", artifact.tags.encode("utf-8", "replace")),
                ("file", (artifact.name, "application/octet-stream", self._file)),
            ],
            cooperator=cooperator,
        )
        self._producing = False
        self.length = self._producer.length
        self.content_type = f"multipart/form-data; boundary={self._producer.boundary.decode('ascii')}"

    @property
    def has_sent_file(self) -> bool:
        """Whether all of the capture has been handed to the connection."""
        return self._file.has_sent_all

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        self._producing = True
        produced: Deferred[None] = Deferred(lambda _: self.stopProducing())

        def done(result: object) -> None:
            if self._producing:
                self._producing = False
                if isinstance(result, Failure):
                    produced.errback(result)
                else:
                    produced.callback(None)

        self._producer.startProducing(consumer).addBoth(done)
        return produced

    def stopProducing(self) -> None:
        if self._producing:
            self._producing = False
            self._producer.stopProducing()

    def pauseProducing(self) -> None:
        if self._producing:
            self._producer.pauseProducing()

    def resumeProducing(self) -> None:
        if self._producing:
            self._producer.resumeProducing()

    def close(self) -> None:
        """Stop, and close the capture."""
        self.stopProducing()
        self._file.close()


@implementer(IBodyProducer)
class _FileProducer:
    """
    Sends a file that is read in a thread, in chunks: the next one is read when the connection wants more.

    @param size: of the file, in bytes.
    """

    def __init__(self, file: BinaryIO, size: int, run_in_thread: RunInThread) -> None:
        self.length = size
        self._file = file
        self._left = size
        self._run_in_thread = run_in_thread
        self._stopped = False
        self._closing = False
        self._reading = False
        self._resumed: Deferred[None] | None = None

    @property
    def has_sent_all(self) -> bool:
        return self._left == 0

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        produced: Deferred[None] = Deferred(lambda _: self.stopProducing())

        def done(result: Any) -> None:
            # A producer that was stopped doesn't fire (IBodyProducer).
            if not self._stopped:
                self._stopped = True
                produced.callback(result)

        Deferred.fromCoroutine(self._produce(consumer)).addBoth(done)
        return produced

    async def _produce(self, consumer: IConsumer) -> None:
        while self._left:
            while self._resumed is not None:
                await self._resumed
            if self._is_stopped():
                break
            chunk = await self._read()
            if self._is_stopped():
                break
            if not chunk:
                raise OSError(f"only {self.length - self._left} of {self.length} bytes could be read")
            self._left -= len(chunk)
            consumer.write(chunk)

    def _is_stopped(self) -> bool:
        # Not the attribute: mypy would take it for unchanged across an await.
        return self._stopped

    async def _read(self) -> bytes:
        self._reading = True
        try:
            chunk: bytes = await self._run_in_thread(self._file.read, min(_CHUNK_BYTES, self._left))
            return chunk
        finally:
            self._reading = False
            if self._closing:
                self._close()

    def pauseProducing(self) -> None:
        if self._resumed is None:
            self._resumed = Deferred()

    def resumeProducing(self) -> None:
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            resumed.callback(None)

    def stopProducing(self) -> None:
        self._stopped = True
        self.resumeProducing()

    def close(self) -> None:
        """Close the file, once it is not being read."""
        self._closing = True
        if not self._reading:
            self._close()

    def _close(self) -> None:
        # Threads that don't run are no reason to keep it open.
        self._run_in_thread(self._file.close).addErrback(lambda _: self._file.close())
