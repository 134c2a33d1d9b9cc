"""
Keeps secrets out of what the console prints.

There are two layers. The console gets settings in which no secret is (L{masked}): no expression
that begins with them can reach one. And every text on its way out, to the terminal or to the log,
has the configured secrets replaced (L{Mask}), since the daemon's own objects hold them elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

import msgspec

from pcapsvc.core.text import longest_spelling, secret_pattern
from pcapsvc.settings.secret import Secret

#: What stands in the place of a secret.
HIDDEN = "<secret>"


class HiddenSecret:
    """Stands for a secret where settings are shown. It doesn't have it."""

    __slots__ = ()

    def reveal(self) -> NoReturn:
        """
        Refuse.

        @raise PermissionError: always.
        """
        raise PermissionError("secrets are not shown in the manhole")

    def __repr__(self) -> str:
        return HIDDEN


def masked(value: Any) -> Any:
    """A copy of settings, in which L{HiddenSecret} stands for every secret."""
    if isinstance(value, Secret):
        return HiddenSecret()
    if isinstance(value, msgspec.Struct):
        changed = {
            each.name: masked(getattr(value, each.name)) for each in msgspec.structs.fields(type(value))
        }
        return msgspec.structs.replace(value, **changed)
    if isinstance(value, Mapping):
        return {key: masked(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return tuple(map(masked, value))
    return value


def secrets_in(value: Any) -> Iterator[str]:
    """Every secret that settings hold."""
    if isinstance(value, Secret):
        yield value.reveal()
    elif isinstance(value, msgspec.Struct):
        for each in msgspec.structs.fields(type(value)):
            yield from secrets_in(getattr(value, each.name))
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from secrets_in(each)
    elif isinstance(value, tuple | list):
        for each in value:
            yield from secrets_in(each)


class Mask:
    """
    Replaces secrets in texts: as they are, and in the notations of Python, JSON, URLs and HTML. A secret that
    was taken apart or encoded otherwise is not recognized; a short one, only as a whole word.

    @param secrets: the secrets.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        # The longest first, because one may be part of another.
        known = sorted({*secrets} - {""}, key=len, reverse=True)
        self.longest = max(map(longest_spelling, known), default=0)
        patterns = [secret_pattern(secret) for secret in known]
        self._pattern = re.compile("|".join(patterns)) if patterns else None

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        return text if self._pattern is None else self._pattern.sub(HIDDEN, text)
