"""The limit of open file descriptors."""

from __future__ import annotations

import resource
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.logger import Logger

#: A lower hard limit is logged as a warning: captures and their deliveries have one or two descriptors each.
LOW_LIMIT = 4096

# Each capture in memory counts as this many: its socket or its file, those of its deliveries, and a
# share of all others.
_PER_CAPTURE = 4

Limits = tuple[int, int]


def most_captures(get: Callable[[int], Limits] = resource.getrlimit) -> int | None:
    """
    How many captures may be in memory, so that descriptors are left for their deliveries.

    @param get: returns the soft and the hard limit of a resource.

    @return: L{None} if there is no limit.
    """
    _, hard = get(resource.RLIMIT_NOFILE)
    return None if hard == resource.RLIM_INFINITY else max(1, hard // _PER_CAPTURE)


class DescriptorLimit(Service):
    """
    Raises the soft limit of descriptors to the hard one (getrlimit(2), RLIMIT_NOFILE). Systems keep
    the soft limit low for programs that call select(2); nothing here does.

    @param get: returns the soft and the hard limit of a resource.
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
        """Raise the limit. If that is refused, it is logged, and the service starts all the same."""
        super().startService()  # type: ignore[no-untyped-call]
        soft, hard = self._get(resource.RLIMIT_NOFILE)
        if soft != hard:
            try:
                self._set(resource.RLIMIT_NOFILE, (hard, hard))
            except (OSError, ValueError) as error:
                self._log.warn(
                    "can't raise the limit of open files from {soft} to {hard}: {error}",
                    soft=soft,
                    hard=hard,
                    error=error,
                )
        if hard != resource.RLIM_INFINITY and hard < LOW_LIMIT:
            self._log.warn(
                "the limit of open files is {hard}: many captures that wait for a destination may need more",
                hard=hard,
            )
