"""Signals: the first one stops the daemon, the next one hurries the stop, others do nothing."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.interfaces import IReactorCore, IReactorFromThreads
from twisted.logger import Logger

from pcapsvc.host.exit import bound_exit

Handler = Callable[[int, Any], Any] | int | None

# Each of these would end the process, by default, and with it the running captures (signal(7)). So do
# SIGABRT, SIGBUS, SIGFPE, SIGILL and SIGSEGV, which have no handler: a process whose own fault caused one
# can't go on, and a handler would not know that somebody else sent it.
#: Stop the daemon: somebody, the power supply, or a limit of CPU time wants it to end.
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGPWR, signal.SIGXCPU)
#: Do nothing, unless somebody else handles them: twistd rotates its log file at SIGUSR1.
IGNORED = (
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGIO,
    signal.SIGSTKFLT,
    # From outside. What causes one of them itself goes on, too.
    signal.SIGTRAP,
    signal.SIGSYS,
    *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
)


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
    While it runs, each signal of L{STOPPING} stops the reactor, and the process exits with status 0
    (with Twisted's own handlers it would end by the signal). A second one hurries the stop.
    SIGHUP and those of L{IGNORED} are logged and do nothing: the configuration is not reloaded. After
    a stop by signal, all of them are ignored until the process exits.

    SIGTTOU is ignored, too: it would suspend a daemon that logs to a terminal in the background.

    @param hurry: is called for each signal after the first.
    @param install: sets the handler of a signal, and returns the previous one.
    @param current: returns the handler of a signal.
    @param bound_exit: is called once the reactor has stopped, if that was by signal.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: ISignalReactor,
        *,
        hurry: Callable[[], None],
        install: Callable[[int, Any], Any] = signal.signal,
        current: Callable[[int], Any] = signal.getsignal,
        bound_exit: Callable[[], object] = bound_exit,
    ) -> None:
        self._reactor = reactor
        self._hurry = hurry
        self._install = install
        self._current = current
        self._bound_exit = bound_exit
        self._before: dict[int, Handler] = {}
        self._stopping = False

    def startService(self) -> None:
        """
        Stop by signal from here on, because clients may connect before the reactor runs. It installs its own
        handlers when it starts, so then all of ours are installed.
        """
        super().startService()  # type: ignore[no-untyped-call]
        self._stopping = False
        for stopping in STOPPING:
            self._handle(stopping, self._on_stop)
        self._reactor.callWhenRunning(self._install_handlers)

    def stopService(self) -> None:
        """Restore the previous handlers; or ignore the signals, if one of them stopped the process."""
        super().stopService()  # type: ignore[no-untyped-call]
        for number, handler in self._before.items():
            # Ours can't stay: the interpreter removes them some time before the process exits.
            self._install(number, signal.SIG_IGN if self._stopping else handler)
        self._before.clear()
        if self._stopping:
            for number in self._unhandled():
                self._install(number, signal.SIG_IGN)

    def _install_handlers(self) -> None:
        if not self.running:
            return
        for stopping in STOPPING:
            self._handle(stopping, self._on_stop)
        self._handle(signal.SIGHUP, self._on_reload)
        for ignored in self._unhandled():
            self._handle(ignored, self._on_ignored)
        self._handle(signal.SIGTTOU, signal.SIG_IGN)

    def _handle(self, number: int, handler: Handler) -> None:
        before = self._install(number, handler)
        if before != handler:
            self._before[number] = before

    def _unhandled(self) -> list[int]:
        """The signals that are to be ignored and would end the process."""
        return [number for number in IGNORED if self._current(number) is signal.SIG_DFL]

    def _on_stop(self, number: int, frame: object) -> None:
        # A handler runs between any two bytecodes, so the work is left to the reactor.
        self._reactor.callFromThread(self._stop, _name(number))

    def _on_reload(self, number: int, frame: object) -> None:
        self._reactor.callFromThread(
            self._log.info, "SIGHUP: ignored; restart the daemon to reload its configuration"
        )

    def _on_ignored(self, number: int, frame: object) -> None:
        self._reactor.callFromThread(self._log.info, "{name}: ignored", name=_name(number))

    def _stop(self, name: str) -> None:
        if self._stopping:
            self._log.info("{name}: hurrying the stop", name=name)
            self._hurry()
            return
        self._stopping = True
        self._log.info("{name}: stopping", name=name)
        self._reactor.addSystemEventTrigger("after", "shutdown", self._bound_exit)
        self._reactor.stop()


def _name(number: int) -> str:
    """The name of a signal. Of the real-time signals, only the first and the last have one."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"
