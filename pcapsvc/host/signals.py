"""What signals mean: the first to stop, the next one to hurry, and those after the end nothing."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.interfaces import IReactorCore, IReactorFromThreads
from twisted.logger import Logger

Handler = Callable[[int, Any], Any] | int | None


def ignore_reload(install: Callable[[int, Any], Any] = signal.signal) -> None:
    """
    Ignore SIGHUP, which would end the process, until L{Signals} takes it.

    @param install: sets the handler of a signal.
    """
    install(signal.SIGHUP, signal.SIG_IGN)


class ISignalReactor(IReactorCore, IReactorFromThreads):
    """What is asked of the reactor here."""


class Signals(Service):
    """
    While it runs: SIGTERM and SIGINT stop the reactor, so that the process ends with
    status 0 (Twisted's own handlers end it by the signal); a second one hurries the
    stop. SIGHUP, which would end the process, does nothing: nothing is reloaded. A process
    that was told to stop ignores all three when it has stopped, until it has ended.

    @param hurry: is called at each signal after the first.
    @param install: sets the handler of a signal, and answers the one before it.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: ISignalReactor,
        *,
        hurry: Callable[[], None],
        install: Callable[[int, Any], Any] = signal.signal,
    ) -> None:
        self._reactor = reactor
        self._hurry = hurry
        self._install = install
        self._before: dict[int, Handler] = {}
        self._stopping = False

    def startService(self) -> None:
        """Take the signals, once the reactor runs, since it installs handlers of its own when it starts."""
        super().startService()  # type: ignore[no-untyped-call]
        self._stopping = False
        self._reactor.callWhenRunning(self._take)

    def stopService(self) -> None:
        """Give them back; or ignore them, where a signal is why the process ends."""
        super().stopService()  # type: ignore[no-untyped-call]
        for number, handler in self._before.items():
            # Not the handlers of ours: the interpreter takes them away some time before it ends.
            self._install(number, signal.SIG_IGN if self._stopping else handler)
        self._before.clear()

    def _take(self) -> None:
        if not self.running:
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = self._install(number, self._told_to_stop)
        self._before[signal.SIGHUP] = self._install(signal.SIGHUP, self._told_to_reload)

    def _told_to_stop(self, number: int, frame: object) -> None:
        # A handler runs between any two bytecodes: what it means is done by the reactor, in its turn.
        self._reactor.callFromThread(self._stop, signal.Signals(number).name)

    def _told_to_reload(self, number: int, frame: object) -> None:
        self._reactor.callFromThread(self._log.info, "SIGHUP: nothing is reloaded; to do so, start again")

    def _stop(self, name: str) -> None:
        if self._stopping:
            self._log.info("{name}: the stop is hurried", name=name)
            self._hurry()
            return
        self._stopping = True
        self._log.info("{name}: stopping", name=name)
        self._reactor.stop()
