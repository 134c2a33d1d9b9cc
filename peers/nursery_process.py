"""
The process of L{peers.nursery.Nursery}: it has imported what a program imports, and forks one for each order.

The program is a module that has

 - C{PRELOADED}: names of modules to import, without threads, which would be gone after a fork;
 - C{NOT_PRELOADED}: the name of one that none of them may import;
 - C{main}: returns the exit status.

An order is one message of a connection of its own, in JSON, with descriptors: the program's output, and those
that it names. The answers are its process id, and, when it has ended, its status. It stays a zombie, so that
its id means nothing else, until the connection is closed; if it still runs then, it is killed.

usage: python -m peers.nursery_process LISTENING_DESCRIPTOR MODULE
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
from typing import Any

from peers.proc import die_with_parent

_LARGEST_ORDER_BYTES = 1 << 20
_MOST_DESCRIPTORS = 8


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
        message, descriptors, _, _ = socket.recv_fds(connection, _LARGEST_ORDER_BYTES, _MOST_DESCRIPTORS)
        if not message:
            connection.close()
            return None
        pid = os.fork()
        if pid == 0:
            connection.close()
            self._close_all()
            return {**json.loads(message), "descriptors": descriptors}
        for descriptor in descriptors:
            os.close(descriptor)
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

    def _close_all(self) -> None:
        """Close, in a child, what only its parent needs."""
        self._listener.close()
        for child in set(self._children.values()):
            child.connection.close()
            os.close(child.exit)


def become(order: dict[str, Any]) -> None:
    """Turn into the process that was ordered, as far as execve(2) would have done it."""
    die_with_parent()
    os.setsid()
    os.chdir(order["directory"])
    os.environ.clear()
    os.environ.update(order["environment"])
    time.tzset()
    nothing = os.open(os.devnull, os.O_RDONLY)
    output, *others = order["descriptors"]
    for descriptor, numbers in (
        (nothing, [0]),
        (output, [1, 2]),
        *((other, [number]) for other, number in zip(others, order["passed"], strict=True)),
    ):
        for number in numbers:
            os.dup2(descriptor, number)
        if descriptor not in numbers:
            os.close(descriptor)
    sys.argv = order["arguments"]
    sys.path[:1] = [order["path"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]


def main() -> int:
    """Serve, or be the program."""
    listening, name = sys.argv[1:]
    # Not every run needs it.
    select.select([int(listening)], [], [])
    program = importlib.import_module(name)
    for module in program.PRELOADED:
        importlib.import_module(module)
    assert program.NOT_PRELOADED not in sys.modules, f"{program.NOT_PRELOADED} was imported"
    become(NurseryProcess(socket.socket(fileno=int(listening))).serve())
    status: int = program.main()
    return status


if __name__ == "__main__":
    sys.exit(main())
