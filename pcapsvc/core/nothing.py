"""Values that mean the same as leaving a field out, as the original took them."""

from __future__ import annotations

from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec

# In fields with numbers. 0 is not a limit of packets, but is a port, a VLAN and a protocol.
_NOTHING: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("snap", "timeout", "duration", "bytes", "before"), (None, 0)),
    **dict.fromkeys(("alertid", "alertstr"), (None, 0, "")),
}


def nothings_of(structure: type[msgspec.Struct]) -> Mapping[str, tuple[Any, ...]]:
    """The values that mean nothing, by field."""
    fields = msgspec.structs.fields(structure)
    return {**{field.name: _nothing_of(field.type) for field in fields}, **_NOTHING}


def means_nothing(value: Any, nothings: tuple[Any, ...] | None) -> bool:
    """
    Whether a value is one of those that mean nothing.

    @param nothings: of its field; L{None} if there is no such field.
    """
    return any(type(value) is type(nothing) and value == nothing for nothing in nothings or ())


def _nothing_of(kind: Any) -> tuple[Any, ...]:
    """For a field of some type: the empty string, or the empty list."""
    if get_origin(kind) is Annotated:
        return _nothing_of(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return tuple(nothing for part in get_args(kind) for nothing in _nothing_of(part))
    if kind is str:
        return (None, "")
    return (None, []) if get_origin(kind) in (tuple, list) else (None,)
