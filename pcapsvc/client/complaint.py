"""What pcapctl says on standard error, if anybody listens: the exit status says what matters as well."""

from __future__ import annotations

import contextlib
import sys


def complain(words: str) -> None:
    """
    Say what is wrong.

    @param words: without control characters, on one line or several.
    """
    show(f"pcapctl: {words}\n")


def show(text: str) -> None:
    """Show a text as it is."""
    with contextlib.suppress(OSError):
        print(text, end="", file=sys.stderr, flush=True)
