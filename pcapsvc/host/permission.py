"""Whether this process may capture at all, said when it starts."""

from __future__ import annotations

import socket
from collections.abc import Callable

from twisted.application.service import Service
from twisted.logger import Logger


def open_packet_socket() -> None:
    """
    Do what every capture begins with (packet(7)).

    @raise OSError: where this process may not.
    """
    # Protocol 0: it receives nothing.
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()


class PermissionCheck(Service):
    """
    Tells at the start where the process lacks the right to capture. Nothing else is
    changed by that: requests are judged, and those for this node are refused.

    @param attempt: raises L{OSError} where packets can't be captured.
    """

    _log = Logger()

    def __init__(self, attempt: Callable[[], None] = open_packet_socket) -> None:
        self._attempt = attempt

    def startService(self) -> None:
        """Try, and tell."""
        super().startService()  # type: ignore[no-untyped-call]
        try:
            self._attempt()
        except PermissionError:
            self._log.critical(
                "no permission to capture: the daemon needs CAP_NET_RAW; until it is started with it,"
                " every request for this node is refused"
            )
        except OSError as error:
            self._log.critical("packets can't be captured here: {error}", error=error)
