"""A file as the body of an HTTP request, streamed."""

from __future__ import annotations

from typing import Any, BinaryIO

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from pcapsvc.interfaces.threads import RunInThread
from pcapsvc.net.threaded_file import CHUNK_BYTES, IDigest, ThreadedFile


@implementer(IBodyProducer)
class FileBody:
    """
    Sends a file that is read in a thread, in chunks: the next one is read when the connection wants more.

    @param size: of the file, in bytes.
    @param digest: is given all that is read; L{None} if nothing is to be computed.
    """

    def __init__(
        self, file: BinaryIO, size: int, run_in_thread: RunInThread, digest: IDigest | None = None
    ) -> None:
        self.length = size
        self._file = ThreadedFile(file, run_in_thread, digest)
        self._left = size
        self._stopped = False
        self._resumed: Deferred[None] | None = None

    @property
    def has_sent_all(self) -> bool:
        """Whether all of it has been handed to the connection."""
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
            chunk = await self._file.read(min(CHUNK_BYTES, self._left))
            if self._is_stopped():
                break
            if not chunk:
                raise OSError(f"only {self.length - self._left} of {self.length} bytes could be read")
            self._left -= len(chunk)
            consumer.write(chunk)

    def _is_stopped(self) -> bool:
        # Not the attribute: mypy would take it for unchanged across an await.
        return self._stopped

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
        self._file.close()
