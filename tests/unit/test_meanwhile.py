"""Work that takes long, while the captures are read."""

from __future__ import annotations

import threading

from twisted.trial import unittest

from pcapsvc.packets.meanwhile import at_once, reading

# More than a process can address (47 bits of x86-64, 48 of AArch64).
_NO_ROOM_BYTES = 1 << 50


class MeanwhileTests(unittest.SynchronousTestCase):
    """L{reading}, and L{at_once}."""

    def test_reads(self) -> None:
        """Captures are read before the work, and again and again until it is done; in the caller's thread."""
        enough = threading.Event()
        reads: list[threading.Thread] = []

        def read() -> None:
            reads.append(threading.current_thread())
            if len(reads) == 4:
                enough.set()

        def work() -> threading.Thread:
            self.assertTrue(reads)
            self.assertTrue(enough.wait(10))
            return threading.current_thread()

        worker = reading(read)(work)
        self.assertIsNot(worker, threading.current_thread())
        self.assertEqual(set(reads), {threading.current_thread()})

    def test_raises(self) -> None:
        """What the work raises is raised, whatever it is."""
        for error in (ZeroDivisionError, TimeoutError, KeyboardInterrupt):
            for do in (reading(lambda: None), at_once):
                with self.assertRaises(error):
                    do(lambda error=error: self._raise(error))  # type: ignore[misc]

    def test_no_thread(self) -> None:
        """Where there may be no more threads, the work is done all the same, in the caller's."""
        # A stack as large as can be asked for: there is no room for one more.
        before = threading.stack_size(_NO_ROOM_BYTES)
        self.addCleanup(threading.stack_size, before)
        self.assertRaises(RuntimeError, threading.Thread(target=int).start)
        self.assertIs(reading(lambda: None)(threading.current_thread), threading.current_thread())

    def test_at_once(self) -> None:
        """Without anything to do meanwhile there is no thread."""
        self.assertIs(at_once(threading.current_thread), threading.current_thread())

    def _raise(self, error: type[BaseException]) -> None:
        raise error
