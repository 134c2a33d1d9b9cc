"""Signals that end pcapctl, at moments of every kind."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from unittest import mock

from twisted.trial import unittest

from pcapsvc.client.at_once import start_thread
from pcapsvc.client.interruption import noticed, on_signal, uninterrupted
from pcapsvc.client.reader import MOST_WAITING_BYTES, FoundEvents

_PATIENCE_SECONDS = 180.0


class InterruptionTests(unittest.SynchronousTestCase):
    """A signal that raises an exception."""

    def setUp(self) -> None:
        """A signal, as Ctrl-C sends it."""
        self.addCleanup(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT))
        on_signal(signal.SIGINT, KeyboardInterrupt)

    def test_at_once(self) -> None:
        """It is raised at once, unless something must not be interrupted: then after that."""
        found = []
        with self.assertRaises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with self.assertRaises(KeyboardInterrupt), uninterrupted():
            with uninterrupted():
                signal.raise_signal(signal.SIGINT)
                found.append("inner")
            found.append("outer")
        self.assertEqual(found, ["inner", "outer"])
        with uninterrupted():
            found.append("again")

    def test_instead(self) -> None:
        """It takes the place of what is raised meanwhile."""
        with self.assertRaises(KeyboardInterrupt), uninterrupted():
            signal.raise_signal(signal.SIGINT)
            raise ValueError

    def test_ignored(self) -> None:
        """A reason that has lapsed meanwhile raises nothing."""
        reasons: list[BaseException | None] = [KeyboardInterrupt()]
        on_signal(signal.SIGINT, lambda: reasons[0])
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            reasons[0] = None

    def test_other_thread(self) -> None:
        """What another thread does is not interrupted anyway, and holds nothing back."""
        inside, done = threading.Event(), threading.Event()

        def run() -> None:
            with uninterrupted():
                inside.set()
                done.wait(_PATIENCE_SECONDS)

        thread = start_thread(run)
        inside.wait(_PATIENCE_SECONDS)
        with self.assertRaises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        done.set()
        thread.join(_PATIENCE_SECONDS)

    def test_found(self) -> None:
        """While an event is waited for, or removed, it leaves no lock behind, and loses no event."""
        found = FoundEvents()
        found.put(b"event", 0.0)
        size = mock.Mock(side_effect=lambda: signal.raise_signal(signal.SIGINT) or 1)
        with mock.patch.object(found, "size", size), self.assertRaises(KeyboardInterrupt):
            found.wait(0.0)
        notify_all = mock.Mock(side_effect=lambda: signal.raise_signal(signal.SIGINT))
        changed = mock.patch.object(threading.Condition, "notify_all", notify_all)
        with changed, self.assertRaises(KeyboardInterrupt):
            found.remove_first()
        self.assertEqual(found.size(), 0)
        # There is as much room as before.
        self.assertTrue(found.put(b"x" * (MOST_WAITING_BYTES - 1), 0.0))
        self.assertTrue(found.put(b"other", 0.0))
        found.remove_first()
        self.assertEqual(found.first(), b"other")

    def test_started(self) -> None:
        """A thread that is being started runs."""
        ran = threading.Event()
        start = threading.Thread.start

        def interrupted(thread: threading.Thread) -> None:
            signal.raise_signal(signal.SIGINT)
            start(thread)

        with mock.patch.object(threading.Thread, "start", interrupted), self.assertRaises(KeyboardInterrupt):
            start_thread(ran.set)
        self.assertTrue(ran.wait(_PATIENCE_SECONDS))


class _Destroyed:
    """An object that is interrupted, or fails, while it is destroyed: Python ignores that."""

    def __init__(self, fail: Callable[[], object]) -> None:
        self._fail = fail

    def __del__(self) -> None:
        self._fail()


class NoticedTests(unittest.SynchronousTestCase):
    """The timer that has signals noticed."""

    def setUp(self) -> None:
        """A signal, as Ctrl-C sends it."""
        self.addCleanup(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT))
        on_signal(signal.SIGINT, KeyboardInterrupt)
        self.unraisable: list[object] = []
        self.patch(sys, "unraisablehook", self.add)
        self.before = signal.getsignal(signal.SIGALRM)

    def add(self, unraisable: sys.UnraisableHookArgs) -> None:
        """What Python reports otherwise."""
        self.unraisable.append(unraisable.exc_type)

    def check_ended(self) -> None:
        """There is no timer any more, and everything is handled as before."""
        self.assertEqual(signal.getitimer(signal.ITIMER_REAL), (0.0, 0.0))
        self.assertIs(signal.getsignal(signal.SIGALRM), self.before)
        self.assertEqual(sys.unraisablehook, self.add)

    def test_ends(self) -> None:
        """Afterwards, there is no timer any more, and its signal is handled as before."""
        with noticed():
            self.assertGreater(signal.getitimer(signal.ITIMER_REAL)[1], 0.0)
        self.check_ended()

    def test_interrupted(self) -> None:
        """So it is if a signal comes at the beginning, or at the end."""
        setitimer = signal.setitimer

        def interrupted(when: bool, which: int, seconds: float, interval: float = 0.0) -> None:
            setitimer(which, seconds, interval)
            if bool(seconds) is when:
                signal.raise_signal(signal.SIGINT)

        for when in (True, False):
            replaced = mock.patch.object(signal, "setitimer", partial(interrupted, when))
            with replaced, self.assertRaises(KeyboardInterrupt), noticed():
                pass
            self.check_ended()

    def test_destroyed(self) -> None:
        """What a signal raises while an object is destroyed is raised again, and not reported."""
        with self.assertRaises(KeyboardInterrupt), noticed():
            _Destroyed(partial(signal.raise_signal, signal.SIGINT))
            time.sleep(_PATIENCE_SECONDS)
        self.assertEqual(self.unraisable, [])

    def test_failed(self) -> None:
        """What else is raised there is reported as before."""
        with noticed():
            _Destroyed(partial(int, "x"))
        self.assertEqual(self.unraisable, [ValueError])
