"""Calls that are due later."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall

from pcapsvc.capture.port import ICaptureReactor


class Timers:
    """Functions to be called later, each of them once."""

    def __init__(self, reactor: ICaptureReactor) -> None:
        self._reactor = reactor
        self._calls: dict[Callable[[], object], IDelayedCall] = {}

    def __contains__(self, function: Callable[[], object]) -> bool:
        """Whether it will be called."""
        return function in self._calls

    def start(self, seconds: float, function: Callable[[], object]) -> None:
        """Call a function after this time, unless it will be called anyway."""

        def call() -> None:
            del self._calls[function]
            function()

        if function not in self._calls:
            self._calls[function] = self._reactor.callLater(seconds, call)

    def cancel(self, *functions: Callable[[], object]) -> None:
        """Don't call them."""
        for function in functions:
            if (call := self._calls.pop(function, None)) is not None:
                call.cancel()

    def cancel_all(self) -> None:
        """Call nothing any more."""
        self.cancel(*self._calls)
