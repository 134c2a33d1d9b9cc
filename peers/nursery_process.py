"""
The process of L{peers.nursery.Nursery}: it has imported what a daemon imports, and forks one for each order.

An order is one message of a connection of its own, in JSON, with a descriptor for its output. The answers are
the daemon's process id, and, when it has ended, its status. It stays a zombie, so that its id means nothing
else, until the connection is closed; if it still runs then, it is killed.

usage: python -m peers.nursery_process LISTENING_DESCRIPTOR
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.scripts import twistd

from peers.proc import die_with_parent

# What each daemon of a test imports, which has HTTP and a local directory: the rest follows from these.
_PRELOADED = (
    "pcapsvc.tap",
    "pcapsvc.app",
    "pcapsvc.destinations.local.destination",
    "pcapsvc.encoders.pcap.encoder",
    "pcapsvc.encoders.pcapng.encoder",
    "pcapsvc.reports.metrics.resource",
    "pcapsvc.reports.metrics.state",
    "pcapsvc.sources.http.routes",
    "pcapsvc.web.api",
    "twisted.plugins",
    "unittest",
)
# What nothing of it may import: a daemon does so with its reactor, when it has decided whether it needs TLS.
_NOT_PRELOADED = "twisted.internet.tcp"
_LARGEST_ORDER_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class _Child:
    pid: int
    connection: socket.socket
    exit: int  # a descriptor that can be read when it has ended: pidfd_open(2)


class NurseryProcess:
    """Takes orders, and has children."""

    def __init__(self, listener: socket.socket) -> None:
        """@param listener: of C{SOCK_SEQPACKET}."""
        self._listener = listener
        # It has no descriptor, which a child would inherit.
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)
        self._children: dict[int, _Child] = {}

    def serve(self) -> dict[str, Any]:
        """Serve for ever. Return in a child only: what it was ordered to be."""
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._listener.fileno():
                    order = self._accept()
                    if order is not None:
                        return order
                elif child := self._children.get(descriptor):
                    self._look_after(child, descriptor)

    def _accept(self) -> dict[str, Any] | None:
        connection, _ = self._listener.accept()
        message, outputs, _, _ = socket.recv_fds(connection, _LARGEST_ORDER_BYTES, 1)
        if not message:
            connection.close()
            return None
        (output,) = outputs
        pid = os.fork()
        if pid == 0:
            connection.close()
            self._forget_all()
            die_with_parent()
            return {**json.loads(message), "output": output}
        os.close(output)
        connection.send(json.dumps({"pid": pid}).encode())
        child = _Child(pid=pid, connection=connection, exit=os.pidfd_open(pid))
        for descriptor in (connection.fileno(), child.exit):
            self._children[descriptor] = child
            self._poll.register(descriptor, select.POLLIN)
        return None

    def _look_after(self, child: _Child, descriptor: int) -> None:
        if descriptor == child.exit:
            ended = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            assert ended is not None
            status = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
            try:
                child.connection.send(json.dumps({"status": status}).encode())
            except OSError:
                pass  # nobody wants to know
            self._forget(child.exit)
            return
        # The connection was closed.
        os.kill(child.pid, signal.SIGKILL)
        os.waitpid(child.pid, 0)
        self._forget(descriptor)
        self._forget(child.exit)
        child.connection.close()
        os.close(child.exit)

    def _forget(self, descriptor: int) -> None:
        if self._children.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    def _forget_all(self) -> None:
        """Close, in a child, what only its parent needs."""
        self._listener.close()
        for child in set(self._children.values()):
            child.connection.close()
            os.close(child.exit)


def become(order: dict[str, Any]) -> None:
    """Turn into the process that was ordered, as far as execve(2) would have done it."""
    os.chdir(order["directory"])
    os.environ.clear()
    os.environ.update(order["environment"])
    time.tzset()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    for standard in (1, 2):
        os.dup2(order["output"], standard)
    os.close(order["output"])
    sys.argv = order["arguments"]
    sys.path[0] = str(Path(sys.argv[0]).parent)


def main() -> None:
    """Serve, or be a daemon."""
    for module in _PRELOADED:
        importlib.import_module(module)
    assert _NOT_PRELOADED not in sys.modules, f"{_NOT_PRELOADED} was imported"
    become(NurseryProcess(socket.socket(fileno=int(sys.argv[1]))).serve())
    twistd.run()


if __name__ == "__main__":
    main()
