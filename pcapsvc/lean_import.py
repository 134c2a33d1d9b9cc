"""Imports libraries without what they would load in vain, and what would take memory from then on."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def replaced(name: str, module: ModuleType | None) -> Iterator[None]:
    """
    Within this, another module stands for one that isn't loaded yet. If it is loaded, nothing is replaced:
    then there is nothing to save.

    @param module: what is imported instead; L{None} makes the import fail.
    """
    if name in sys.modules:
        yield
        return
    sys.modules[name] = module  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


def with_classes(name: str, *classes: str) -> ModuleType:
    """A module that has only these classes, which are empty: enough to be imported, and to derive from."""
    module = ModuleType(name)
    for each in classes:
        setattr(module, each, type(each, (), {}))
    return module
