"""Notices a peer that has vanished without a word."""

from __future__ import annotations

import socket

_IDLE_SECONDS, _INTERVAL_SECONDS, _PROBES = 15, 5, 3


def keep_alive(connection: socket.socket) -> None:
    """Have the kernel ask whether the peer is still there: after half a minute without, reading fails."""
    if connection.family == socket.AF_UNIX:
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _INTERVAL_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
