"""
Listens on unix sockets, also after a process that was killed.

Such a process leaves its socket behind, and Twisted's lock with its process id. The id may belong to
another process by now, and in a container it always does: every first process has the id 1. So the
socket itself is asked: the kernel refuses a connection if nobody listens on it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort

# Another process that is just starting needs the directory for less than a millisecond.
_LOCK_SECONDS = 1.0
_LOCK_STEP_SECONDS = 0.02


class UnixListener:
    """
    The part of a reactor that listens on unix sockets. A socket on which nobody listens is replaced.

    @param reactor: what listens (L{IReactorUNIX<twisted.internet.interfaces.IReactorUNIX>}).
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def listenUNIX(
        self, address: str, factory: Any, backlog: int = 50, mode: int = 0o666, wantPID: bool = False
    ) -> IListeningPort:
        """
        Listen, as Twisted's method of this name does.

        @param wantPID: has no effect: the socket shows whether it is in use.

        @raise CannotListenError: if somebody listens on the socket, or it can't be replaced.
        """
        with _locked(os.path.dirname(os.path.abspath(address))):
            try:
                _remove_stale_socket(address)
            except OSError as error:
                raise CannotListenError(None, address, error) from error  # type: ignore[no-untyped-call]
            port: IListeningPort = self._reactor.listenUNIX(
                address, factory, backlog=backlog, mode=mode, wantPID=False
            )
            return port


def _remove_stale_socket(address: str) -> None:
    """
    Remove a socket on which nobody listens.

    @raise OSError: if there is something else.
    """
    try:
        found = os.lstat(address)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EADDRINUSE, "there is a file that is not a socket")
    if _is_in_use(address):
        raise OSError(errno.EADDRINUSE, "another process is listening on it")
    os.unlink(address)
    lock = f"{address}.lock"
    with suppress(OSError):
        # Twisted's: a symbolic link to the process id.
        if os.readlink(lock).isdecimal():
            os.unlink(lock)


def _is_in_use(address: str) -> bool:
    """
    Whether somebody listens on a socket.

    @raise OSError: if that can't be found out.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(address)
        except ConnectionRefusedError:
            return False
        except OSError as error:
            # EAGAIN: its queue is full. EPROTOTYPE: it is not a stream (unix(7)).
            if error.errno not in (errno.EAGAIN, errno.EPROTOTYPE):
                raise
    return True


@contextmanager
def _locked(directory: str) -> Iterator[None]:
    """
    Lock a directory against other processes that do the same, so that none of two that start at
    once removes the socket of the other. Whoever holds the lock for long is not waited for.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        # It can't be read, or isn't there, which listening will report.
        yield
        return
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while time.monotonic() < deadline:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_LOCK_STEP_SECONDS)
            except OSError:
                # The file system has no locks.
                break
            else:
                break
        yield
    finally:
        os.close(descriptor)
