"""
Long lists in JSON.

A list of captures may have megabytes, and a client that doesn't read must not keep them in memory. So an item
is made when it is sent, and few in one turn of the reactor.
"""

# Twisted has hardly any types for failures.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from twisted.python.failure import Failure
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer

from pcapsvc.net.http_resource import Answer
from pcapsvc.web.stream import Stream

#: How much is sent at once, in bytes.
PIECE_BYTES = 32 * 1024


def json_list(reactor: Any, name: str, items: Iterable[Mapping[str, Any]]) -> Answer:
    """
    An object that has a list. A short one is sent with its length.

    @param reactor: makes the turns.
    @param name: what it is called in the object.
    @param items: in values that JSON has. They are made when they are sent.
    """
    pieces = _pieces(name, items)
    first = next(pieces)
    second = next(pieces, None)
    if second is None:
        return Answer(media_type="application/json", body=first)
    return Answer(
        media_type="application/json", body=_ListStream(reactor, itertools.chain((first, second), pieces))
    )


def _pieces(name: str, items: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    """The JSON in pieces, of which there is at least one."""
    waiting = f"{{{json.dumps(name)}: ["
    separator = ""
    for item in items:
        waiting += separator + json.dumps(item, allow_nan=False)
        separator = ", "
        if len(waiting) >= PIECE_BYTES:
            yield waiting.encode()
            waiting = ""
    yield f"{waiting}]}}\n".encode()


@implementer(IBodyProducer)
class _ListStream(Stream):
    has_end = True

    def __init__(self, reactor: Any, pieces: Iterator[bytes]) -> None:
        self._reactor = reactor
        self._pieces = pieces
        self._next: Any = None
        self.length: Any = UNKNOWN_LENGTH

    def stopProducing(self) -> None:
        """See L{IBodyProducer}."""
        super().stopProducing()
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _go_on(self) -> None:
        if self._next is None and self._done is not None and not self._is_paused:
            self._next = self._reactor.callLater(0, self._send)

    def _send(self) -> None:
        self._next = None
        if self._is_paused:
            return
        try:
            piece = next(self._pieces, None)
        except Exception:  # noqa: BLE001 - whatever it is, this answer is cut off, and nothing else is
            self._end(Failure())
            return
        if piece is None:
            self._end()
            return
        self._consumer.write(piece)
        self._go_on()
