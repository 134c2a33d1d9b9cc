"""What clients that block need: somebody to run them in a thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred


class RunInThread(Protocol):
    """Runs a function that blocks, in a thread that may."""

    def __call__(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """
        @return: fires with what the function returns, and fails with what it raises.
        """
