"""The limit of open file descriptors."""

from __future__ import annotations

import resource
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.logger import Logger

#: A lower hard limit is logged as a warning: captures and their deliveries have one or two descriptors each.
LOW_LIMIT = 4096

# The process itself: its logs, listeners, connections to brokers, and a filter compiler.
_OWN = 20
# Each capture in memory: its socket, its file, open twice, and those of its deliveries.
_PER_CAPTURE = 4
# At least this many connections are possible, even if captures have to go without.
_LEAST_CONNECTIONS = 4

#: How many connections a listener may have if there are descriptors enough.
MOST_CONNECTIONS = 128

Limits = tuple[int, int]


def most_connections(get: Callable[[int], Limits] = resource.getrlimit) -> int:
    """
    How many connections a listener may have, so that those of strangers leave descriptors for captures.

    @param get: returns the soft and the hard limit of a resource.
    """
    _, hard = get(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return min(MOST_CONNECTIONS, max(_LEAST_CONNECTIONS, (hard - _OWN) // 4))


def most_captures(get: Callable[[int], Limits] = resource.getrlimit) -> int | None:
    """
    How many captures may be in memory, so that descriptors are left for their deliveries.

    @param get: returns the soft and the hard limit of a resource.

    @return: L{None} if there is no limit.
    """
    _, hard = get(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return None
    return max(1, (hard - _OWN - most_connections(get)) // _PER_CAPTURE)


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
