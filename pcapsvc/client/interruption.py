"""
Signals that end pcapctl, such as that of Ctrl-C. They raise an exception in the main thread, wherever it is:
but neither too soon, while it holds a lock of L{threading}, nor too late.
"""

from __future__ import annotations

import signal
import sys
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
    @ivar raised: what was raised last.
    """

    depth = 0
    reason: Reason | None = None
    raised: BaseException | None = None

    def raise_due(self) -> None:
        """Raise what was held back, if anything was, unless it still is."""
        if self.depth:
            return
        reason, self.reason = self.reason, None
        exception = None if reason is None else reason()
        if exception is not None:
            self.raised = exception
            raise exception

    def raise_again(self, exception: BaseException) -> None:
        """Hold back what was raised in vain."""
        self.reason = lambda: exception


_held = _Held()


def on_signal(number: int, reason: Reason) -> None:
    """Have a signal raise an exception."""

    def handle(number: int, frame: object) -> None:
        _held.reason = reason
        _held.raise_due()

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
        _held.raise_due()


@contextmanager
def noticed() -> Iterator[None]:
    """
    Have signals noticed within 0.2 s by whatever the main thread waits for, and whatever it does.

    Python only notes a signal, and handles it once the system call that it interrupts has returned. If it
    comes just before such a call, or to another thread, it interrupts nothing. So a timer does, repeatedly.
    Python also ignores what is raised while it destroys an object, or in another function that the garbage
    collector or a weak reference calls. The timer raises that again.
    """
    handler, hook = signal.getsignal(signal.SIGALRM), sys.unraisablehook

    def notice(number: int, frame: object) -> None:
        _held.raise_due()

    def keep(unraisable: sys.UnraisableHookArgs) -> None:
        if unraisable.exc_value is not None and unraisable.exc_value is _held.raised:
            _held.raise_again(unraisable.exc_value)
        else:
            hook(unraisable)

    try:
        sys.unraisablehook = keep
        signal.signal(signal.SIGALRM, notice)
        signal.setitimer(signal.ITIMER_REAL, _NOTICE_SECONDS, _NOTICE_SECONDS)
        yield
    finally:
        # Held back without a call, which might be interrupted: a timer that is left kills Python as it exits.
        _held.depth += 1
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, handler)
        sys.unraisablehook = hook
        _held.depth -= 1
        _held.raise_due()
