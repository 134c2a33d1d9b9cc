"""What pcapctl needs of a way to the nodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol


class IEventStream(Protocol):
    """Events, from the moment on at which it was opened."""

    def __iter__(self) -> Iterator[bytes]:
        """
        The events, each as JSON. Blocks until the next one arrives, and ends when the stream is closed.

        @raise NoAnswer: if the connection is lost.
        """
        ...

    def close(self) -> None:
        """From any thread: end it."""
        ...


class ITransport(Protocol):
    """A way to the nodes. All methods block."""

    def send(self, body: bytes) -> int | None:
        """
        Send a message.

        @return: how many nodes have received it; L{None} if that isn't known.

        @raise NoAnswer: if it can't be sent.
        """
        ...

    def events(self, requestid: str | None) -> IEventStream:
        """
        Read events from now on.

        @param requestid: only those about requests of this name, if the transport can tell. L{None} is all.

        @raise NoAnswer: if they can't be read.
        @raise Refused: if the node refuses.
        """
        ...
