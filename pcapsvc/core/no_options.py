"""A mix-in for destinations without options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pcapsvc.core.errors import Problem
from pcapsvc.core.fields import unknown_key


class WithoutOptions:
    """A destination without options, and with one route: a part of an C{IDestination}."""

    routes: tuple[str, ...] = ("usual",)

    def route(self, options: Mapping[str, Any]) -> str:
        """The only one."""
        return self.routes[0]

    def check(self, options: Mapping[str, Any]) -> Iterator[Problem]:
        """Each option is a problem."""
        return (unknown_key(key, ()) for key in options)
