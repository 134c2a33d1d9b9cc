"""
Interrupts a line that keeps the reactor for too long.

A console inside the reactor's thread can stop the whole daemon with C{while True: pass}: no packet
is read until the line ends. So a timer of the kernel (setitimer(2), ITIMER_REAL) sends SIGALRM to the
process, whose handler raises L{TakesTooLong} in the line. Unlike an exception that another thread
injects, a signal also ends a C{time.sleep} and a read that blocks, and C code that asks for signals,
such as C{repr} of a list of millions.

It can't end one call of C code that never asks: C{sum(range(10**10))}, C{"x" * 10**10}.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

#: How long a line may keep the reactor. At 300,000 packets a second of 128 bytes, each of which takes 216
#: bytes of the ring, the default one (C{[capture] buffersize}, 8 MiB) is full after 129 ms, and other work
#: comes on top. Measured there with lines that hang, one after the other: 0.05 s lost nothing, 0.1 s 3 %.
LINE_SECONDS = 0.05

# A line that catches the exception, and goes on, gets it again.
_AGAIN_SECONDS = 0.02


class TakesTooLong(BaseException):
    """
    A line kept the reactor for too long.

    Not an L{Exception}, so that what the line catches is not this.
    """

    # In a traceback, where the name would be a long one.
    __module__ = "builtins"


class TimeLimit:
    """
    Runs functions with a limit of their time. Does nothing but run them until L{install}, or if
    that is not called in the main thread, to which Python brings signals.

    @param seconds: how long each may take.
    """

    def __init__(self, seconds: float = LINE_SECONDS) -> None:
        self.seconds = seconds
        self._is_installed = False
        self._before: Any = None
        self._is_armed = False

    def install(self) -> None:
        """Take SIGALRM."""
        try:
            self._before = signal.signal(signal.SIGALRM, self._expired)
        except ValueError:
            # Not the main thread.
            return
        self._is_installed = True

    def uninstall(self) -> None:
        """Give SIGALRM back."""
        if self._is_installed:
            self._is_installed = False
            signal.signal(signal.SIGALRM, signal.SIG_DFL if self._before is None else self._before)

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """
        Call a function. One that is called within another has the other's time.

        @raise TakesTooLong: if it takes too long.
        """
        if self._is_armed or not self._is_installed:
            return self._call(function, *args)
        try:
            self._arm()
            return self._call(function, *args)
        finally:
            self._disarm()

    def _call(self, function: Callable[..., T], *args: Any) -> T:
        # A frame of its own, which is the one that is interrupted if the function is in C.
        return function(*args)

    def _arm(self) -> None:
        self._is_armed = True
        signal.setitimer(signal.ITIMER_REAL, self.seconds, _AGAIN_SECONDS)

    def _disarm(self) -> None:
        self._is_armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _expired(self, number: int, frame: FrameType | None) -> None:
        # Not within these, lest the time be taken away half.
        is_ours = frame is not None and frame.f_code in (TimeLimit.run.__code__, TimeLimit._disarm.__code__)
        if self._is_armed and not is_ours:
            raise TakesTooLong(f"interrupted after {self.seconds:g} s, as captures wait for it")
