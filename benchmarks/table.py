"""Plain text output: tables, and targets next to the figures."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def print_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """
    Print a table. The first column is aligned to the left, all others to the right.

    @param rows: each has as many cells as there are heads.
    """
    widths = [max(len(row[at]) for row in (heads, *rows)) for at in range(len(heads))]
    print(f"== {title}\n")
    for row in (heads, ["-" * width for width in widths], *rows):
        first, *rest = (
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *rest]).rstrip())
    print(flush=True)


def print_target(target: str, found: str, reached: bool) -> None:
    """Print a target, and whether it was reached. This has no other effect: machines differ."""
    print(f"{'reached' if reached else 'not reached':<12} {target}: {found}", flush=True)


def tell(words: str) -> None:
    """Show on a terminal what is being measured."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{words}", end="" if words else "\r", file=sys.stderr, flush=True)
