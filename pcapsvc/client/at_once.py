"""Asks several nodes at once, so that those that don't answer delay no other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_MOST = 32

Place = TypeVar("Place")
Answer = TypeVar("Answer")


def at_once(ask: Callable[[Place], Answer], places: Iterable[Place]) -> Sequence[Answer]:
    """
    Call a function for each place, up to 32 at once.

    @return: what it returned, in the order of the places.
    """
    found = list(places)
    if len(found) < 2:
        return [ask(place) for place in found]
    with ThreadPoolExecutor(min(_MOST, len(found))) as pool:
        return list(pool.map(ask, found))
