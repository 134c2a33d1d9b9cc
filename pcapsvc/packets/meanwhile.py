"""Work that takes long, in a thread; and meanwhile the captures are read."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from threading import Thread
from typing import Protocol, TypeVar

_T = TypeVar("_T")

#: How long captures are left unread, in seconds. The smallest ring fills in ten times that.
PAUSE_SECONDS = 0.005


class Meanwhile(Protocol):
    """Does work that takes long."""

    def __call__(self, work: Callable[[], _T]) -> _T:
        """
        @return: what the work returns; what it raises is raised.
        """


def at_once(work: Callable[[], _T]) -> _T:
    """The L{Meanwhile} that does nothing meanwhile."""
    return work()


def reading(read_all: Callable[[], None]) -> Meanwhile:
    """
    A L{Meanwhile} for the reactor's thread: it waits there until the work is done, since
    whoever asks wants the answer now, and keeps the captures' rings from filling up. That
    helps where the work lets go of Python's lock. Where no thread can be started, the
    work is done at once.

    @param read_all: reads what all captures have.
    """

    def do(work: Callable[[], _T]) -> _T:
        future: Future[_T] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - raised again where the work was asked for
                future.set_exception(error)

        read_all()
        try:
            Thread(target=run, daemon=True, name="pcapsvc-meanwhile").start()
        except RuntimeError:
            # There may be no more threads (pthread_create(3), EAGAIN). Better late than not at all.
            return work()
        while not wait([future], PAUSE_SECONDS).done:
            read_all()
        return future.result()

    return do
