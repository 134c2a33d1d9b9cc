"""Signals: the first one stops the daemon, the next one hurries the stop, SIGHUP does nothing."""

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
    Ignore SIGHUP until L{Signals} handles it: by default it ends the process.

    @param install: sets the handler of a signal.
    """
    install(signal.SIGHUP, signal.SIG_IGN)


class ISignalReactor(IReactorCore, IReactorFromThreads):
    """What L{Signals} needs of a reactor."""


class Signals(Service):
    """
    While it runs, SIGTERM and SIGINT stop the reactor, and the process exits with status 0
    (with Twisted's own handlers it would end by the signal). A second one hurries the stop.
    SIGHUP is logged and does nothing, as the configuration is not reloaded. After a stop by
    signal, all three are ignored until the process exits.

    @param hurry: is called for each signal after the first.
    @param install: sets the handler of a signal, and returns the previous one.
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
        """Handle the signals as soon as the reactor runs: it installs its own handlers when it starts."""
        super().startService()  # type: ignore[no-untyped-call]
        self._stopping = False
        self._reactor.callWhenRunning(self._install_handlers)

    def stopService(self) -> None:
        """Restore the previous handlers; or ignore the signals, if one of them stopped the process."""
        super().stopService()  # type: ignore[no-untyped-call]
        for number, handler in self._before.items():
            # Ours can't stay: the interpreter removes them some time before the process exits.
            self._install(number, signal.SIG_IGN if self._stopping else handler)
        self._before.clear()

    def _install_handlers(self) -> None:
        if not self.running:
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = self._install(number, self._on_stop)
        self._before[signal.SIGHUP] = self._install(signal.SIGHUP, self._on_reload)

    def _on_stop(self, number: int, frame: object) -> None:
        # A handler runs between any two bytecodes, so the work is left to the reactor.
        self._reactor.callFromThread(self._stop, signal.Signals(number).name)

    def _on_reload(self, number: int, frame: object) -> None:
        self._reactor.callFromThread(
            self._log.info, "SIGHUP: ignored; restart the daemon to reload its configuration"
        )

    def _stop(self, name: str) -> None:
        if self._stopping:
            self._log.info("{name}: hurrying the stop", name=name)
            self._hurry()
            return
        self._stopping = True
        self._log.info("{name}: stopping", name=name)
        self._reactor.stop()
