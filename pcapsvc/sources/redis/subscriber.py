"""A subscriber's connection to Redis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import defer, error, protocol
from twisted.python.failure import Failure

from pcapsvc.core.text import one_line
from pcapsvc.net.redis import ProtocolError, Silent, Unusable
from pcapsvc.sources.redis.frames import Frames
from pcapsvc.sources.redis.library import ResponseError, SubscriberProtocol

#: How much later than due an answer is judged missing, so that what has arrived by then is read first.
GRACE_SECONDS = 0.1

#: How long a connection has to close.
CLOSE_SECONDS = 1.0

# How long messages may keep the reactor in one turn. A request for this node takes up to 0.4 ms until it is
# accepted or refused, and hundreds may be read at once.
_TURN_SECONDS = 0.003


class Unsubscribed(Unusable):
    """The server answers, but delivers no more messages."""


class SubscriberFactory(protocol.Factory):
    """
    Makes connections.

    @param on_message: is called with each message; must not raise. Likewise C{on_skipped}, with the length of
        each message that is too long.
    """

    noisy = False

    def __init__(
        self,
        clock: Any,
        channel: str,
        on_message: Callable[[bytes], None],
        on_skipped: Callable[[int], None],
    ) -> None:
        self._clock = clock
        self._channel = channel
        self._on_message = on_message
        self._on_skipped = on_skipped

    def buildProtocol(self, addr: Any) -> Any:
        return Subscriber(self._clock, self._channel, self._on_message, self._on_skipped)


class Subscriber(SubscriberProtocol):  # type: ignore[misc] # txredisapi has no types
    """
    A connection. Messages are taken out of what it receives by L{Frames}; txredisapi gets the other replies.

    @ivar reason: why the connection was lost; L{None} while it is not.
    """

    def __init__(
        self,
        clock: Any,
        channel: str,
        on_message: Callable[[bytes], None],
        on_skipped: Callable[[int], None],
    ) -> None:
        super().__init__(charset=None, convertNumbers=False)
        # Replaces the global reactor's, which is a class attribute in txredisapi.
        self.callLater = clock.callLater
        self.reason: Exception | None = None
        self._channel = channel.encode()
        self._frames = Frames(
            self._channel,
            on_message=on_message,
            on_skipped=on_skipped,
            on_reply=super().dataReceived,
            seconds=clock.seconds,
        )
        # The next turn, if messages wait for it: until they are judged, no more are read. And why the
        # connection was lost in the meantime.
        self._next_turn: Any = None
        self._lost: Failure | None = None
        self._received = False
        self._complaint: Exception | None = None
        self._timer: Any = None
        self._waiting: list[defer.Deferred[None]] = []

    def dataReceived(self, data: bytes, unpause: bool = False) -> None:
        self._received = True
        if self._complaint is not None:
            return
        self._frames.receive(data)
        # TLS hands over what it has decrypted, even if reading is paused.
        if self._next_turn is None:
            self._hand_over()

    def _hand_over(self) -> None:
        """Have messages judged for one turn of the reactor."""
        was_paused, self._next_turn = self._next_turn is not None, None
        is_everything = True
        try:
            if self._complaint is None:
                is_everything = self._frames.hand_over(_TURN_SECONDS)
        except Exception as problem:  # noqa: BLE001 - the next connection starts afresh
            self._give_up(ProtocolError(f"the server does not speak Redis ({one_line(str(problem))})"))
        if not is_everything and self._complaint is None:
            self._next_turn = self.callLater(0, self._hand_over)
        elif self._lost is not None:
            self._end(self._lost)
        if self.reason is None and self._lost is None and was_paused == is_everything:
            (self.transport.resumeProducing if is_everything else self.transport.pauseProducing)()

    def replyReceived(self, reply: Any) -> None:
        if isinstance(reply, list) and reply[:1] in ([b"unsubscribe"], [b"punsubscribe"]):
            self._give_up(Unsubscribed("the server ended the subscription"))
        elif not self.replyQueue.waiting:
            # Not what was asked for, and the next command would take it for its answer.
            words = reply if isinstance(reply, Exception) else type(reply).__name__
            self._give_up(ProtocolError(f"the server sent an unexpected reply ({one_line(str(words))})"))
        else:
            super().replyReceived(reply)

    async def subscribe_to_channel(self) -> None:
        """
        Subscribe.

        @raise txredisapi.ResponseError: if the server refuses.
        @raise ProtocolError: if the server answers something else.
        """
        answer = await self.subscribe(self._channel.decode())
        if not isinstance(answer, list) or answer[:2] != [b"subscribe", self._channel]:
            raise ProtocolError("the server did not confirm the subscription")

    def connectionLost(self, why: Failure) -> None:
        if self._next_turn is not None and self._complaint is None:
            # What was received before is judged first.
            self._lost = why
            return
        self._end(why)

    def _end(self, why: Failure) -> None:
        cause = self._complaint or why.value
        self.reason = cause if isinstance(cause, Exception) else error.ConnectionLost(str(cause))
        self._set_timer(None)
        if self._next_turn is not None:
            self._next_turn.cancel()
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
        Send a PING at intervals. Give the connection up if nothing is received within C{answer_seconds} after
        one, or if the answer is not that to a subscriber.
        """
        if self.reason is not None:
            return

        def ping() -> None:
            self._received = False
            self.ping().addCallbacks(self._pinged, self._not_pinged)
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

    def _pinged(self, answer: Any) -> None:
        # Redis documentation, "PING": a subscriber gets an array, and any other client a plain PONG.
        if self.reason is None and not isinstance(answer, list):
            self._give_up(Unsubscribed("the server no longer treats this connection as subscribed"))

    def _not_pinged(self, failure: Failure) -> None:
        """An access list may allow SUBSCRIBE, and no PING. The confirmation of another SUBSCRIBE will do."""

        def refused(failure: Failure) -> None:
            if self.reason is None:
                self._give_up(Unsubscribed(f"the server ended the subscription ({failure.value})"))

        if self.reason is None and isinstance(failure.value, ResponseError):
            defer.Deferred.fromCoroutine(self.subscribe_to_channel()).addErrback(refused)

    def _give_up(self, complaint: Exception) -> None:
        self._complaint = self._complaint or complaint
        self._set_timer(None)
        self.transport.abortConnection()

    def _abort(self) -> None:
        self._timer = None
        self.transport.abortConnection()

    def _set_timer(self, timer: Any) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = timer
