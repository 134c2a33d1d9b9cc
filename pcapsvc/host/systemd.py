"""Tells the service manager what becomes of the service."""

from __future__ import annotations

import socket

from twisted.application.service import Service
from twisted.internet.interfaces import IReactorCore
from twisted.logger import Logger

# What is added to the time that the stop may take, for the rest of the process's end.
_MARGIN_SECONDS = 5


class Readiness(Service):
    """
    Tells systemd when the service is ready, and when it stops (sd_notify(3)). To be the
    last part that starts, and the first that stops.

    @param address: of the manager's socket, as in C{NOTIFY_SOCKET}; L{None} tells nobody.
    @param stop_timeout_seconds: how long the stop may take: the manager is asked for so much.
    """

    _log = Logger()

    def __init__(self, reactor: IReactorCore, address: str | None, *, stop_timeout_seconds: float) -> None:
        self._reactor = reactor
        self._address = address
        self._stop_seconds = stop_timeout_seconds + _MARGIN_SECONDS

    def startService(self) -> None:
        """Tell that the service is ready, once the reactor runs."""
        super().startService()  # type: ignore[no-untyped-call]
        self._reactor.callWhenRunning(self._ready)

    def stopService(self) -> None:
        """Tell that the service stops."""
        super().stopService()  # type: ignore[no-untyped-call]
        self._tell(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={self._stop_seconds * 1e6:.0f}")

    def _ready(self) -> None:
        if self.running:
            self._tell("READY=1")

    def _tell(self, state: str) -> None:
        if not self._address:
            return
        # unix(7): an abstract address begins with a null byte, which no variable can hold.
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.setblocking(False)
                manager.connect(address)
                manager.send(state.encode())
        except OSError as error:
            self._log.warn(
                "the service manager could not be told {state!r}: {error}", state=state, error=error
            )
