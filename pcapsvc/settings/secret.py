"""A value that must not be shown: a password, a token, a key."""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import msgspec


class Secret:
    """
    A secret. Only L{reveal} returns it: C{repr}, C{str} and formats don't show it, and it can't
    be pickled.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The secret itself."""
        return self._value

    def __repr__(self) -> str:
        return "<Secret>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(
            self._value.encode("utf-8", "surrogatepass"), other._value.encode("utf-8", "surrogatepass")
        )

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")


def revealed(secret: Secret | None) -> str | None:
    """The secret itself, for the library that needs it; L{None} if there is none."""
    return None if secret is None else secret.reveal()


def secrets_in(value: Any) -> Iterator[str]:
    """Every secret that settings hold."""
    if isinstance(value, Secret):
        yield value.reveal()
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from secrets_in(getattr(value, name))
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from secrets_in(each)
    elif isinstance(value, tuple | list):
        for each in value:
            yield from secrets_in(each)
