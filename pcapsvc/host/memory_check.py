"""Checks at the start whether captures may use as much memory as is configured."""

from __future__ import annotations

from twisted.application.service import Service
from twisted.logger import Logger

from pcapsvc.host.memory import ProcessMemory


class MemoryCheck(Service):
    """
    Logs at the start if captures may not use as much memory as is configured.

    @param wanted_bytes: C{[general] maxmemory}.
    @param history_bytes: how much of it the histories of interfaces hold.
    """

    _log = Logger()

    def __init__(
        self, wanted_bytes: int, memory: ProcessMemory | None = None, *, history_bytes: int = 0
    ) -> None:
        self._wanted = wanted_bytes
        self._history = history_bytes
        self._memory = memory or ProcessMemory()

    def startService(self) -> None:
        """Check."""
        super().startService()  # type: ignore[no-untyped-call]
        allowed = self._memory.at_most(self._wanted)
        if allowed < self._wanted:
            self._log.warn(
                "maxmemory is {wanted}, but this process may use {limit} bytes of memory (control groups,"
                " and the host's memory): captures may use {allowed}{others}",
                wanted=self._wanted,
                limit=self._memory.limit_bytes(),
                allowed=max(0, allowed - self._history),
                others=f", and histories {self._history}" if self._history else "",
            )
