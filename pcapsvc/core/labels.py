"""What every event about a request repeats, so that its sender can match the two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class Labels(msgspec.Struct, frozen=True, kw_only=True):
    """
    What identifies a request, as far as its sender said; each is L{None} if not given.

    @ivar via: the name of the source that the request arrived through; L{None} only for a
        capture that was spooled by a version that didn't record it.
    @ivar requestid: the sender's own id of the request.
    @ivar interface: the interface that the event is about; L{None} if it is about the whole request.
    """

    via: str | None
    requestid: str | None = None
    alertid: int | str | None = None
    customer: str | None = None
    tags: str | None = None
    interface: str | None = None

    def as_mapping(self) -> dict[str, int | str]:
        """The labels that are given, by name, in values that JSON has."""
        given = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: value for name, value in given.items() if value is not None}

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Labels:
        """
        The labels of a mapping that L{as_mapping} made. Never raises: unknown keys and values of
        other types are ignored, because no capture may be lost for the sake of a label.
        """
        given = {name: mapping.get(name) for name in _TYPES}
        return cls(**{name: value if type(value) in _TYPES[name] else None for name, value in given.items()})


# By name. A bool is no int here.
_TYPES: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(Labels.__struct_fields__, (str,)),
    "alertid": (int, str),
}
