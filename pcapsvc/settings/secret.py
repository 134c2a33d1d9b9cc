"""A value that must not be shown: a password, a token, a key."""

from __future__ import annotations

import hmac
from typing import NoReturn


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
