"""
Signals that end pcapctl, such as that of Ctrl-C. They raise an exception in the main thread, wherever it is:
but neither too soon, while it holds a lock of L{threading}, nor too late.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_NOTICE_SECONDS = 0.2

#: What a signal raises; L{None} if it is ignored by now.
Reason = Callable[[], BaseException | None]


class _Held:
    """
    What is held back.

    @ivar depth: how many calls must not be interrupted, one within the other.
    @ivar reason: that of the last signal meanwhile.
    """

    depth = 0
    reason: Reason | None = None

    def raise_now(self) -> None:
        """Raise what was held back, if anything was."""
        reason, self.reason = self.reason, None
        exception = None if reason is None else reason()
        if exception is not None:
            raise exception


_held = _Held()


def on_signal(number: int, reason: Reason) -> None:
    """Have a signal raise an exception."""

    def handle(number: int, frame: object) -> None:
        _held.reason = reason
        if not _held.depth:
            _held.raise_now()

    signal.signal(number, handle)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """
    Hold back what signals raise: for what is short, and left in disorder by an exception. Conditions, events
    and threads of L{threading} are: they release a lock for a while.
    """
    if threading.current_thread() is not threading.main_thread():
        # Signals are handled there alone.
        yield
        return
    _held.depth += 1
    try:
        yield
    finally:
        _held.depth -= 1
        if not _held.depth:
            _held.raise_now()


@contextmanager
def noticed() -> Iterator[None]:
    """
    Have signals noticed within 0.2 s by whatever the main thread waits for.

    Python only notes a signal, and handles it once the system call that it interrupts has returned. If it
    comes just before such a call, or to another thread, it interrupts nothing. So a timer does, repeatedly.
    """
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, _NOTICE_SECONDS, _NOTICE_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
