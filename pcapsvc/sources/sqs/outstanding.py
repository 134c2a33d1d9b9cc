"""The messages that were submitted and are not settled yet."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec
from twisted.internet import defer, task

from pcapsvc.sources.sqs.queue import Message


class Submitted(msgspec.Struct, kw_only=True, eq=False):
    """
    A message that was submitted, and whose verdict is awaited.

    @ivar keys: by which it is recognized if it is delivered again.
    @ivar copies: the message, as often as it was delivered.
    @ivar settled: fires when it is settled, or could not be.
    """

    keys: Sequence[str]
    copies: list[Message]
    verdict: defer.Deferred[Any]
    settled: defer.Deferred[None] = msgspec.field(default_factory=defer.Deferred)


class Outstanding:
    """
    Knows these messages, bounds their number, and keeps those whose verdicts are awaited hidden from other
    nodes.

    @param most: up to how many there is room for more.
    @param hide: renews the visibility timeouts of messages.
    @param hide_seconds: how often.
    """

    def __init__(
        self, reactor: Any, *, most: int, hide: Callable[[list[Message]], object], hide_seconds: float
    ) -> None:
        self._most = most
        self._undecided: dict[str, Submitted] = {}
        self._unsettled: set[Submitted] = set()
        self._room: defer.Deferred[None] | None = None
        self._hide = hide
        self._hide_seconds = hide_seconds
        self._hiding = task.LoopingCall(self._renew)
        self._hiding.clock = reactor

    def find(self, keys: Collection[str]) -> Submitted | None:
        """A message whose verdict is awaited, by any of its keys."""
        return next((self._undecided[key] for key in keys if key in self._undecided), None)

    def add(self, submitted: Submitted) -> None:
        """The verdict on a message is awaited."""
        self._unsettled.add(submitted)
        self._undecided.update(dict.fromkeys(submitted.keys, submitted))
        if not self._hiding.running:
            self._hiding.start(self._hide_seconds, now=False)

    def decided(self, submitted: Submitted) -> None:
        """Its verdict has fired."""
        for key in submitted.keys:
            self._undecided.pop(key, None)
        if not self._undecided and self._hiding.running:
            self._hiding.stop()

    def settled(self, submitted: Submitted) -> None:
        """It is settled, or can't be."""
        self._unsettled.discard(submitted)
        submitted.settled.callback(None)
        if self._room is not None and len(self._unsettled) < self._most:
            room, self._room = self._room, None
            room.callback(None)

    def pending(self) -> list[defer.Deferred[None]]:
        """What fires when the messages are settled."""
        return [submitted.settled for submitted in self._unsettled]

    def give_up(self) -> None:
        """Cancel the verdicts that are awaited."""
        for submitted in dict.fromkeys(self._undecided.values()):
            submitted.verdict.cancel()

    async def has_room(self) -> None:
        """Wait until there is room for more."""
        if len(self._unsettled) >= self._most:
            self._room = defer.Deferred()
            await self._room

    def _renew(self) -> None:
        undecided = dict.fromkeys(self._undecided.values())
        self._hide([copy for submitted in undecided for copy in submitted.copies])
