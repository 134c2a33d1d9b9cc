"""How many descriptors the process may have."""

from __future__ import annotations

import resource
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.logger import Logger

#: Where the hard limit is lower, the log tells: a capture and each of its deliveries have one or two.
FEW = 4096

# Of all that are allowed, so many for each capture in memory: its socket or its file, those of its
# deliveries, and some for all else.
_FOR_EACH_CAPTURE = 4

Limits = tuple[int, int]


def most_captures(get: Callable[[int], Limits] = resource.getrlimit) -> int | None:
    """
    How many captures may be in memory before there are no descriptors for deliveries; L{None} is no bound.

    @param get: answers the limits of a resource, the soft and the hard one.
    """
    _, hard = get(resource.RLIMIT_NOFILE)
    return None if hard == resource.RLIM_INFINITY else max(1, hard // _FOR_EACH_CAPTURE)


class DescriptorLimit(Service):
    """
    Raises the soft limit of descriptors to the hard one (getrlimit(2), RLIMIT_NOFILE). A low
    soft limit is for the sake of select(2), which nothing here calls.

    @param get: answers the limits of a resource, the soft and the hard one.
    @param set: sets them.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        get: Callable[[int], Limits] = resource.getrlimit,
        set: Callable[[int, Limits], Any] = resource.setrlimit,
    ) -> None:
        self._get = get
        self._set = set

    def startService(self) -> None:
        """Raise it. What is refused is logged, and nothing else happens."""
        super().startService()  # type: ignore[no-untyped-call]
        soft, hard = self._get(resource.RLIMIT_NOFILE)
        if soft != hard:
            try:
                self._set(resource.RLIMIT_NOFILE, (hard, hard))
            except (OSError, ValueError) as error:
                self._log.warn(
                    "the limit of {soft} descriptors can't be raised to {hard}: {error}",
                    soft=soft,
                    hard=hard,
                    error=error,
                )
        if hard != resource.RLIM_INFINITY and hard < FEW:
            self._log.warn(
                "no more than {hard} descriptors are allowed: many captures that wait for a destination may"
                " need more",
                hard=hard,
            )
