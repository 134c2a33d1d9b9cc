"""What the daemon does on signals."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

from twisted.trial import unittest

from pcapsvc.host.exit import EXIT_SECONDS, bound_exit
from pcapsvc.host.signals import IGNORED, STOPPING, Signals, ignore_reload
from tests.unit.logged import logged

HANDLED = (signal.SIGHUP, *STOPPING, *IGNORED, signal.SIGTTOU)


class Reactor:
    """A reactor that runs calls from handlers at once."""

    def __init__(self) -> None:
        self.stops = 0
        self.started: list[Callable[[], None]] = []
        self.triggers: list[tuple[str, str, Callable[[], object]]] = []

    def callWhenRunning(self, function: Callable[[], None]) -> None:
        self.started.append(function)

    def callFromThread(self, function: Callable[..., Any], *args: Any, **keywords: Any) -> None:
        function(*args, **keywords)

    def addSystemEventTrigger(self, phase: str, event: str, function: Callable[[], object]) -> None:
        self.triggers.append((phase, event, function))

    def stop(self) -> None:
        self.stops += 1


class SignalsTests(unittest.SynchronousTestCase):
    """L{Signals}, with a table in place of the process's handlers."""

    def setUp(self) -> None:
        """A started service."""
        self.handlers: dict[int, Any] = dict.fromkeys(HANDLED, signal.SIG_DFL)
        self.reactor = Reactor()
        self.hurried = 0
        self.signals = Signals(
            self.reactor, hurry=self.hurry, install=self.install, current=self.handlers.__getitem__
        )
        self.signals.startService()

    def hurry(self) -> None:
        """Count calls."""
        self.hurried += 1

    def install(self, number: int, handler: Any) -> Any:
        """As C{signal.signal} does."""
        before, self.handlers[number] = self.handlers[number], handler
        return before

    def run_reactor(self) -> None:
        """Start the reactor."""
        for function in self.reactor.started:
            function()

    def test_all(self) -> None:
        """Of the signals that would end a process, only SIGKILL and those of its own faults do."""
        # signal(7).
        faults = {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV}
        harmless = {signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH}
        suspending = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
        by_python = {signal.SIGPIPE, signal.SIGXFSZ}
        others = {signal.SIGHUP, signal.SIGKILL, *faults, *harmless, *suspending, *by_python}
        self.assertEqual({*STOPPING, *IGNORED}, signal.valid_signals() - others)

    def test_before_the_reactor_runs(self) -> None:
        """Before the reactor runs, only the signals that stop the daemon are handled, and kept for it."""
        handled = {number for number, handler in self.handlers.items() if handler != signal.SIG_DFL}
        self.assertEqual(handled, set(STOPPING))
        self.handlers[signal.SIGTERM](signal.SIGTERM, None)
        self.assertEqual(self.reactor.stops, 1)

    def test_as_the_reactor_starts(self) -> None:
        """All handlers are installed once the reactor runs, also in place of its own."""
        self.handlers[signal.SIGTERM] = signal.default_int_handler
        self.run_reactor()
        self.assertNotIn(signal.default_int_handler, self.handlers.values())
        self.assertNotIn(signal.SIG_DFL, self.handlers.values())

    def test_stop_then_hurry(self) -> None:
        """The first signal stops the reactor, and each further one hurries the stop."""
        self.run_reactor()
        for number in STOPPING:
            self.handlers[number](number, None)
        self.assertEqual((self.reactor.stops, self.hurried), (1, len(STOPPING) - 1))

    def test_exit(self) -> None:
        """After a stop by signal, the process has a limited time to exit."""
        self.run_reactor()
        self.assertEqual(self.reactor.triggers, [])
        for _ in range(2):
            self.handlers[signal.SIGTERM](signal.SIGTERM, None)
        self.assertEqual(self.reactor.triggers, [("after", "shutdown", bound_exit)])

    def test_bounded_exit(self) -> None:
        """A process that has not exited in time ends with status 0."""
        ended = threading.Event()
        waits: list[float] = []
        statuses: list[int] = []

        def exit_now(status: int) -> None:
            statuses.append(status)
            ended.set()

        bound_exit(sleep=waits.append, exit_now=exit_now)
        self.assertTrue(ended.wait(60))
        self.assertEqual((waits, statuses), ([EXIT_SECONDS], [0]))

    def test_exit_without_a_thread(self) -> None:
        """If no thread can be started, that is logged, and the exit goes on."""
        # There is no room for a stack of 64 TiB.
        self.addCleanup(threading.stack_size, threading.stack_size(1 << 46))
        messages = logged(self)
        bound_exit(exit_now=self.fail)
        self.assertEqual(messages(), ["the end of the process is not bounded: can't start new thread"])

    def test_nothing_is_reloaded(self) -> None:
        """SIGHUP does nothing, and neither do signals without a meaning."""
        self.run_reactor()
        for number in (signal.SIGHUP, *IGNORED):
            self.handlers[number](number, None)
        self.assertEqual((self.reactor.stops, self.hurried), (0, 0))

    def test_handled_by_others(self) -> None:
        """The handlers of others stay: twistd's for SIGUSR1, and the manhole's for SIGALRM."""
        others = {signal.SIGUSR1: "rotate", signal.SIGALRM: "limit"}
        self.handlers.update(others)
        self.run_reactor()
        self.assertEqual({number: self.handlers[number] for number in others}, others)
        self.handlers[signal.SIGALRM] = signal.SIG_DFL
        self.handlers[signal.SIGTERM](signal.SIGTERM, None)
        self.signals.stopService()
        self.assertEqual(self.handlers[signal.SIGUSR1], "rotate")
        self.assertEqual(self.handlers[signal.SIGALRM], signal.SIG_IGN)

    def test_ignored_after_the_end(self) -> None:
        """After a stop by signal, further signals don't change the exit status."""
        self.run_reactor()
        self.handlers[signal.SIGTERM](signal.SIGTERM, None)
        self.signals.stopService()
        self.assertEqual(self.handlers, dict.fromkeys(HANDLED, signal.SIG_IGN))

    def test_ignored_before_the_start(self) -> None:
        """Before the service starts, only SIGHUP is ignored."""
        self.signals.stopService()
        ignore_reload(self.install)
        self.assertEqual(self.handlers.pop(signal.SIGHUP), signal.SIG_IGN)
        self.assertEqual(set(self.handlers.values()), {signal.SIG_DFL})

    def test_restored(self) -> None:
        """
        If the service is stopped without a signal, the previous handlers are restored. A reactor
        that starts later changes nothing.
        """
        self.run_reactor()
        self.signals.stopService()
        self.assertEqual(set(self.handlers.values()), {signal.SIG_DFL})
        self.run_reactor()
        self.assertEqual(set(self.handlers.values()), {signal.SIG_DFL})
