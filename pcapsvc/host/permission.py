"""Checks at the start whether this process may capture packets at all."""

from __future__ import annotations

import socket
from collections.abc import Callable

from twisted.application.service import Service
from twisted.logger import Logger


def open_packet_socket() -> None:
    """
    Open and close a packet socket (packet(7)), which is how every capture begins.

    @raise OSError: if this process may not do that.
    """
    # Protocol 0: it receives nothing.
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()


class PermissionCheck(Service):
    """
    Logs at the start if the process lacks the permission to capture. Nothing else changes:
    requests are still read, and those for this node are rejected.

    @param attempt: raises L{OSError} if packets can't be captured.
    """

    _log = Logger()

    def __init__(self, attempt: Callable[[], None] = open_packet_socket) -> None:
        self._attempt = attempt

    def startService(self) -> None:
        """Check."""
        super().startService()  # type: ignore[no-untyped-call]
        try:
            self._attempt()
        except PermissionError:
            self._log.critical(
                "no permission to capture: the daemon needs CAP_NET_RAW; until it is started with it,"
                " every request for this node is rejected"
            )
        except OSError as error:
            self._log.critical("can't capture packets on this system: {error}", error=error)
