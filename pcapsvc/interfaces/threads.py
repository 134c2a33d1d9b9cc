"""What blocking clients need: threads to run in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred


class RunInThread(Protocol):
    """Runs a blocking function in a thread."""

    def __call__(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """
        @return: fires with what the function returns; fails with what it raises.
        """
