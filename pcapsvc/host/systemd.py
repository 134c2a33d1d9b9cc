"""Notifies the service manager of the service's state."""

from __future__ import annotations

import socket

from twisted.application.service import Service
from twisted.internet.interfaces import IReactorCore
from twisted.logger import Logger

# What the process needs to exit, after the stop.
_MARGIN_SECONDS = 5


class Readiness(Service):
    """
    Notifies systemd when the service is ready, and when it stops (sd_notify(3)). It must start
    last and stop first.

    @param address: the manager's socket, as in C{NOTIFY_SOCKET}; L{None} if there is none.
    @param stop_timeout_seconds: how long the stop may take. The manager is asked to allow that.
    """

    _log = Logger()

    def __init__(self, reactor: IReactorCore, address: str | None, *, stop_timeout_seconds: float) -> None:
        self._reactor = reactor
        self._address = address
        self._stop_seconds = stop_timeout_seconds + _MARGIN_SECONDS

    def startService(self) -> None:
        """Notify that the service is ready, as soon as the reactor runs."""
        super().startService()  # type: ignore[no-untyped-call]
        self._reactor.callWhenRunning(self._ready)

    def stopService(self) -> None:
        """Notify that the service is stopping."""
        super().stopService()  # type: ignore[no-untyped-call]
        self._notify(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={self._stop_seconds * 1e6:.0f}")

    def _ready(self) -> None:
        if self.running:
            self._notify("READY=1")

    def _notify(self, state: str) -> None:
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
                "could not send {state!r} to the service manager: {error}", state=state, error=error
            )
