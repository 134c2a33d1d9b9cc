"""Signals that end pcapctl, at moments of every kind."""

from __future__ import annotations

import signal
import threading
from unittest import mock

from twisted.trial import unittest

from pcapsvc.client.at_once import start_thread
from pcapsvc.client.interruption import noticed, on_signal, uninterrupted
from pcapsvc.client.reader import _Found

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
        found = _Found()
        found.put(b"event", 0.0)
        size = mock.Mock(side_effect=lambda: signal.raise_signal(signal.SIGINT) or 1)
        with mock.patch.object(found, "size", size), self.assertRaises(KeyboardInterrupt):
            found.wait(0.0)
        changed = mock.patch.object(found._changed, "notify_all", lambda: signal.raise_signal(signal.SIGINT))
        with changed, self.assertRaises(KeyboardInterrupt):
            found.remove_first()
        self.assertEqual((found.size(), found._bytes), (0, 0))
        self.assertTrue(found.put(b"other", 0.0))
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


class NoticedTests(unittest.SynchronousTestCase):
    """The timer that has signals noticed."""

    def test_ends(self) -> None:
        """Afterwards, there is no timer any more, and its signal is handled as before."""
        before = signal.getsignal(signal.SIGALRM)
        with noticed():
            self.assertGreater(signal.getitimer(signal.ITIMER_REAL)[1], 0.0)
        self.assertEqual(signal.getitimer(signal.ITIMER_REAL), (0.0, 0.0))
        self.assertIs(signal.getsignal(signal.SIGALRM), before)
