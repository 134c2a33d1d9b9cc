"""A subscriber's connection to Redis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import defer, error, protocol
from twisted.python.failure import Failure
from txredisapi import SubscriberProtocol

#: How much later than due an answer is judged missing, so that what has arrived by then is read first.
GRACE_SECONDS = 0.1

#: How long a connection has to close.
CLOSE_SECONDS = 1.0

#: The longest message that is buffered until it is complete. A longer one ends its connection: Redis would
#: accept half a gigabyte (proto-max-bulk-len), and a request has up to 64 KiB.
MAX_MESSAGE_BYTES = 1024 * 1024


class Silent(Exception):
    """The server is connected, but does not answer."""


class ProtocolError(Exception):
    """The server sends something other than Redis would."""


class SubscriberFactory(protocol.Factory[Any]):
    """
    Makes connections.

    @param on_message: is called with each message; must not raise.
    """

    noisy = False

    def __init__(self, clock: Any, on_message: Callable[[bytes], None]) -> None:
        self._clock = clock
        self._on_message = on_message

    def buildProtocol(self, addr: Any) -> Any:
        return Subscriber(self._clock, self._on_message)


class Subscriber(SubscriberProtocol):  # type: ignore[misc] # txredisapi has no types
    """
    A connection. What it receives is parsed by hiredis, which txredisapi uses if it is installed.

    @ivar reason: why the connection was lost; L{None} while it is not.
    """

    def __init__(self, clock: Any, on_message: Callable[[bytes], None]) -> None:
        super().__init__(charset=None, convertNumbers=False)
        # Replaces the global reactor's, which is a class attribute in txredisapi.
        self.callLater = clock.callLater
        self.reason: Exception | None = None
        self._on_message = on_message
        self._received = False
        self._unread_bytes = 0
        self._complaint: Exception | None = None
        self._timer: Any = None
        self._waiting: list[defer.Deferred[None]] = []

    def dataReceived(self, data: bytes, unpause: bool = False) -> None:
        self._received = True
        if self._complaint is not None:
            return
        self._unread_bytes += len(data)
        try:
            super().dataReceived(data)
        except Exception as problem:  # noqa: BLE001 - the next connection starts afresh
            self._give_up(ProtocolError(f"the server does not speak Redis ({problem})"))
            return
        if self._unread_bytes > MAX_MESSAGE_BYTES:
            self._give_up(ProtocolError(f"the server began a message longer than {MAX_MESSAGE_BYTES} bytes"))

    def replyReceived(self, reply: Any) -> None:
        self._unread_bytes = 0
        super().replyReceived(reply)

    def messageReceived(self, pattern: bytes | None, channel: bytes, message: bytes) -> None:
        self._on_message(message)

    def connectionLost(self, why: Failure) -> None:
        cause = self._complaint or why.value
        self.reason = cause if isinstance(cause, Exception) else error.ConnectionLost(str(cause))
        self._set_timer(None)
        super().connectionLost(why)
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            if not deferred.called:
                deferred.callback(None)

    def when_lost(self) -> defer.Deferred[None]:
        """Fires when the connection is lost. Cancelling it only ends the wait."""
        if self.reason is not None:
            return defer.succeed(None)
        self._waiting.append(defer.Deferred())
        return self._waiting[-1]

    def close(self) -> None:
        """Close the connection; abort it after L{CLOSE_SECONDS}."""
        if self.reason is None:
            self._set_timer(self.callLater(CLOSE_SECONDS, self._abort))
            self.transport.loseConnection()

    def check_every(self, seconds: float, answer_seconds: float) -> None:
        """
        Send a PING at intervals, and give the connection up if nothing is received within C{answer_seconds}
        after one.
        """
        if self.reason is not None:
            return

        def ping() -> None:
            self._received = False
            self.ping().addErrback(lambda lost: None)
            self._set_timer(self.callLater(answer_seconds, wait_once_more))

        def wait_once_more() -> None:
            # If this process was too busy, the answer may still be in the socket. The reactor reads it
            # before it makes a later call.
            self._set_timer(self.callLater(GRACE_SECONDS, judge))

        def judge() -> None:
            if self._received:
                self._set_timer(self.callLater(max(0.0, seconds - answer_seconds - GRACE_SECONDS), ping))
            else:
                self._give_up(Silent(f"no answer to PING within {answer_seconds:g} s"))

        self._set_timer(self.callLater(seconds, ping))

    def _give_up(self, complaint: Exception) -> None:
        self._complaint = complaint
        self._set_timer(None)
        self.transport.abortConnection()

    def _abort(self) -> None:
        self._timer = None
        self.transport.abortConnection()

    def _set_timer(self, timer: Any) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = timer
