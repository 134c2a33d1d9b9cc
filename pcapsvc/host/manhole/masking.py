"""
Keeps secrets out of what the console prints.

There are two layers. The console gets settings in which no secret is (L{masked}): no expression
that begins with them can reach one. And every text on its way out, to the terminal or to the log,
has the configured secrets replaced (L{pcapsvc.core.mask}), since the daemon's own objects hold them
elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import msgspec

from pcapsvc.core.mask import HIDDEN
from pcapsvc.settings.secret import Secret


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
        changed = {name: masked(getattr(value, name)) for name in value.__struct_fields__}
        return msgspec.structs.replace(value, **changed)
    if isinstance(value, Mapping):
        return {key: masked(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return tuple(map(masked, value))
    return value
