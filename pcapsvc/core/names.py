"""Names that are matched regardless of case, as Go matches the keys of JSON and TOML."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import TypeVar

Value = TypeVar("Value")


def canonical_names(
    given: Mapping[str, Value], names: Collection[str], is_absent: Callable[[Value], bool]
) -> dict[str, Value]:
    """
    A table by the names that its keys mean, in its order. A key means the name that is equal to it, or else
    the name that differs from it only by case. If several keys mean one name, the exact one counts, or else
    the last; but one that is absent never counts if another isn't.

    @param is_absent: whether a value means that its key is not given.

    @return: the values by name; keys that mean none of the names, by themselves.
    """
    if all(key in names for key in given):
        return dict(given)
    folded = _folded(frozenset(names))
    found: dict[str, Value] = {}
    exact: set[str] = set()
    for key, value in given.items():
        name = key if key in names else folded.get(key.casefold(), key)
        if name in found and is_absent(value) and not is_absent(found[name]):
            continue
        if name in exact and name != key and not is_absent(found[name]):
            continue
        if name == key:
            exact.add(name)
        found[name] = value
    return found


@lru_cache(maxsize=64)
def _folded(names: frozenset[str]) -> Mapping[str, str]:
    return {name.casefold(): name for name in names}
