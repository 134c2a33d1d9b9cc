"""
The process of L{peers.nursery.Nursery}: it has imported what a program imports, and forks one for each order.

The program is a module that has

 - C{PRELOADED}: names of modules to import, which must start no threads: a fork doesn't copy them;
 - C{NOT_PRELOADED}: the name of one that none of them may import;
 - C{main}: returns the exit status.

An order is one message of a connection of its own, in JSON, with descriptors: the program's standard output,
its standard error, and those that it names. The answers are its process id, and, when it has ended, its
status. It stays a zombie, so that its id means nothing else, until the connection is closed; if it still runs
then, it is killed.

usage: python -m peers.nursery_process LISTENING_DESCRIPTOR MODULE
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
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
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            pid = -1
            _answer(connection, problem=str(error))
        if pid == 0:
            connection.close()
            self._close_all()
            return {**json.loads(message), "descriptors": descriptors, "parent": parent}
        for descriptor in descriptors:
            os.close(descriptor)
        if pid > 0:
            self._take_care_of(pid, connection)
        else:
            connection.close()
        return None

    def _take_care_of(self, pid: int, connection: socket.socket) -> None:
        child = _Child(pid=pid, connection=connection, exit=os.pidfd_open(pid))
        for descriptor in (connection.fileno(), child.exit):
            self._children[descriptor] = child
            self._poll.register(descriptor, select.POLLIN)
        _answer(connection, pid=pid)

    def _look_after(self, child: _Child, descriptor: int) -> None:
        if descriptor == child.exit:
            ended = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            assert ended is not None
            status = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
            _answer(child.connection, status=status)
            self._forget(child.exit)
            if child.connection.fileno() < 0:
                self._reap(child)
            return
        # The connection was closed: nobody wants it any more, nor what it has started.
        self._forget(descriptor)
        child.connection.close()
        if child.exit in self._children:
            _kill(child.pid)
        else:
            self._reap(child)

    def _reap(self, child: _Child) -> None:
        os.waitpid(child.pid, 0)
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


def _answer(connection: socket.socket, **answer: Any) -> None:
    try:
        connection.send(json.dumps(answer).encode())
    except OSError:
        pass  # nobody wants to know


def _kill(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        # It has no session of its own yet.
        os.kill(pid, signal.SIGKILL)


def become(order: dict[str, Any]) -> None:
    """
    Turn into the process that was ordered, as if execve(2) had started it. But its command line in proc(5),
    its locale and the seed of its hashes are the nursery's.
    """
    die_with_parent()
    if os.getppid() != order["parent"]:
        os._exit(1)
    os.setsid()
    os.chdir(order["directory"])
    os.environ.clear()
    os.environ.update(order["environment"])
    time.tzset()
    nothing = os.open(os.devnull, os.O_RDONLY)
    output, errors, *others = order["descriptors"]
    for descriptor, number in (
        (nothing, 0),
        (output, 1),
        (errors, 2),
        *zip(others, order["passed"], strict=True),
    ):
        os.dup2(descriptor, number)
        if descriptor != number:
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
        try:
            importlib.import_module(module)
        except Exception:  # noqa: BLE001 - whoever needs it reports it
            traceback.print_exc()
    assert program.NOT_PRELOADED not in sys.modules, f"{program.NOT_PRELOADED} was imported"
    assert threading.active_count() == 1, threading.enumerate()
    # Or each process would look at all of it again, and by that copy it.
    gc.collect()
    gc.freeze()
    become(NurseryProcess(socket.socket(fileno=int(listening))).serve())
    status: int = program.main()
    return status


if __name__ == "__main__":
    sys.exit(main())
