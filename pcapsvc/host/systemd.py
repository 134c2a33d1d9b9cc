"""Notifies the service manager of the service's state."""

from __future__ import annotations

import socket

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReactorCore, IReactorTime
from twisted.logger import Logger

# What the process needs to exit, after the stop.
_MARGIN_SECONDS = 5
# If the manager is so busy that its socket has no room: how soon to try again, and for how long. Without
# READY=1, it would end the service after a while (systemd.service(5), TimeoutStartSec).
_AGAIN_SECONDS = 0.1
_PATIENCE_SECONDS = 60.0


class INotifyingReactor(IReactorCore, IReactorTime):
    """What it takes to notify."""


class Readiness(Service):
    """
    Notifies systemd when the service is ready, and when it stops (sd_notify(3)). It must start
    last and stop first.

    @param address: the manager's socket, as in C{NOTIFY_SOCKET}; L{None} if there is none.
    @param stop_timeout_seconds: how long the stop may take. The manager is asked to allow that.
    """

    _log = Logger()

    def __init__(
        self, reactor: INotifyingReactor, address: str | None, *, stop_timeout_seconds: float
    ) -> None:
        self._reactor = reactor
        self._address = address
        self._stop_seconds = stop_timeout_seconds + _MARGIN_SECONDS
        self._again: IDelayedCall | None = None

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
        """Notify of a state, which replaces one that could not be sent yet."""
        if self._again is not None and self._again.active():
            self._again.cancel()
        if self._address:
            # unix(7): an abstract address begins with a null byte, which no variable can hold.
            address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
            self._send(address, state, self._reactor.seconds() + _PATIENCE_SECONDS)

    def _send(self, address: str, state: str, until: float) -> None:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.setblocking(False)
                manager.connect(address)
                manager.send(state.encode())
        except OSError as error:
            if isinstance(error, BlockingIOError) and self._reactor.seconds() < until:
                self._again = self._reactor.callLater(_AGAIN_SECONDS, self._send, address, state, until)
                return
            self._log.warn(
                "could not send {state!r} to the service manager: {error}", state=state, error=error
            )
