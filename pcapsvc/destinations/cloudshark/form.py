"""The form that is uploaded, streamed."""

from __future__ import annotations

from contextlib import suppress

from treq.multipart import MultiPartProducer
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer
from twisted.internet.task import Cooperator, NotPaused
from twisted.python.failure import Failure
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from pcapsvc.core.artifact import Artifact
from pcapsvc.interfaces.threads import RunInThread
from pcapsvc.net.file_body import FileBody


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
        self._file = FileBody(artifact.content.open(), size, run_in_thread)
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
        # If the capture has ended since it was paused, treq passes this on to what comes after it, which it
        # has not paused: that goes on by itself.
        with suppress(NotPaused):
            if self._producing:
                self._producer.resumeProducing()

    def close(self) -> None:
        """Stop, and close the capture."""
        self.stopProducing()
        self._file.close()
