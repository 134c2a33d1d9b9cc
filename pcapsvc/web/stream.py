"""What is sent piece by piece, as fast as a client reads."""

# Twisted has hardly any types for failures.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure


class Stream:
    """
    What streams have in common: see L{IBodyProducer}.

    @cvar has_end: whether it ends whatever the client does, although its length isn't known.
    """

    has_end = False

    _consumer: Any = None
    _is_paused = False
    _done: Deferred[None] | None = None

    def startProducing(self, consumer: Any) -> Deferred[None]:
        """Begin to send."""
        self._consumer = consumer
        done = self._done = Deferred()
        self._go_on()
        return done

    def pauseProducing(self) -> None:
        """The client doesn't read."""
        self._is_paused = True

    def resumeProducing(self) -> None:
        """The client has read everything so far."""
        self._is_paused = False
        self._go_on()

    def stopProducing(self) -> None:
        """Send no more. A second call does nothing."""
        self._done = None

    def _go_on(self) -> None:
        raise NotImplementedError

    def _end(self, failure: Failure | None = None) -> None:
        done = self._done
        self.stopProducing()
        if done is not None:
            done.callback(failure)
