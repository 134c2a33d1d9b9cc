"""
The randomness of the tests: everything random in them comes from one seed, which can be set.

The environment variable C{PCAPSVC_SEED} sets it. Otherwise it is another one in each run, and is printed
where it is first used, so that a failure's random choices can be made again.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from typing import Any, TypeVar

VARIABLE = "PCAPSVC_SEED"

_Test = TypeVar("_Test", bound=Callable[..., Any])

_given = os.environ.get(VARIABLE)
SEED = int(_given) if _given else random.SystemRandom().randrange(2**32)
_printed = False


def chance(name: str) -> random.Random:
    """
    A source of random choices of its own, the same in each run with the same seed.

    @param name: who asks: C{self.id()}. So tests don't depend on which others run, and in which order.
    """
    _print_once()
    return random.Random(f"{SEED} {name}")


def seeded(test: _Test) -> _Test:
    """Make Hypothesis choose its examples by the seed: put it above C{given}."""
    import hypothesis

    _print_once()
    decorated: _Test = hypothesis.seed(SEED)(test)
    return decorated


def _print_once() -> None:
    global _printed
    if not _printed:
        _printed = True
        sys.stdout.write(f"{VARIABLE}={SEED}\n")
        sys.stdout.flush()
