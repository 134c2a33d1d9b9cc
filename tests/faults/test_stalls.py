"""Time limits hold even if the daemon is stopped for a while, as by a debugger."""

from __future__ import annotations

import signal
import time

from twisted.trial.unittest import SynchronousTestCase

from peers.daemon import Daemon
from peers.frames import number_of, udp_frame
from peers.tcpdump import read_packets
from peers.wire import Wire

# The processor that runs the daemon must also get to send packets in time.
needs_machine_alone = True

_STALL_SECONDS = 3.0
# How exact time limits are.
_EXACT_SECONDS = 0.1


class StallTests(SynchronousTestCase):
    """A capture of which the time is up while the daemon is stopped."""

    def setUp(self) -> None:
        """A wire and a daemon."""
        self.wire = Wire()
        self.addCleanup(self.wire.stop)
        self.wire.start()
        self.daemon = Daemon()
        self.addCleanup(self.daemon.stop)
        self.daemon.start()

    def capture(self, times: list[float], **limits: float) -> tuple[str, dict[int, float]]:
        """
        Capture packets, while the daemon is stopped from 0.2 s on.

        All times are in seconds after the request. C{self.answered} is when it was answered, and C{self.sent}
        when each packet was sent: not before, and not after. They may be late, if this process is held up.

        @param times: when to send each packet, in seconds after the answer.

        @return: the reason of its end; and the numbers of the packets in the file, with the times when they
            arrived.
        """
        began = time.time()
        capture = self.daemon.capture(interface=[self.wire.interface], bpf="udp port 9", **limits)
        self.answered = time.time() - began
        self.sent: list[tuple[float, float]] = []
        stop_at, cont_at = 0.2, 0.2 + _STALL_SECONDS
        steps = sorted([(at, number) for number, at in enumerate(times)] + [(stop_at, -1), (cont_at, -2)])
        try:
            for at, number in steps:
                time.sleep(max(0.0, began + self.answered + at - time.time()))
                if number == -1:
                    self.daemon.signal(signal.SIGSTOP)
                elif number == -2:
                    self.daemon.signal(signal.SIGCONT)
                else:
                    before = time.time() - began
                    self.wire.send([udp_frame(number)])
                    self.sent.append((before, time.time() - began))
        finally:
            self.daemon.signal(signal.SIGCONT)
        state = self.daemon.done(capture)
        packets = read_packets(self.daemon.file_of(capture))
        self.assertEqual((state["packets"], state["dropped"]), (len(packets), 0))
        self.assertEqual(state["bytes"], self.daemon.file_of(capture).stat().st_size)
        arrived = {number_of(each.data): each.seconds + each.fraction / 1e6 - began for each in packets}
        return state["reason"], arrived

    def test_duration(self) -> None:
        """The file ends where the duration does, and has everything up to there."""
        times = [0.1 + 0.125 * number for number in range(26)]
        reason, arrived = self.capture(times, duration=2, timeout=60)
        self.assertEqual(reason, "duration")
        self.assertLess(max(arrived.values()), self.answered + 2 + _EXACT_SECONDS)
        certain = [number for number, (_, at) in enumerate(self.sent) if at < 2]
        self.assertTrue(certain)
        self.assertEqual(list(arrived)[: len(certain)], certain)

    def test_idle(self) -> None:
        """The file ends at the first gap that is longer than the idle time."""
        times = [0.1, 0.6, 1.2, 2.6, 2.8, 3.0, 3.3]
        reason, arrived = self.capture(times, duration=60, timeout=1)
        self.assertEqual(reason, "idle")
        self.assertEqual(list(arrived), list(range(len(arrived))))
        self.assertIn(len(arrived), self.before_gaps(1))

    def before_gaps(self, seconds: float) -> list[int]:
        """How many packets precede the first gap of this length: several numbers if that isn't certain."""
        counts = []
        earliest, latest = 0.0, self.answered
        for count, (before, after) in enumerate(self.sent):
            if after - earliest > seconds - _EXACT_SECONDS:
                counts.append(count)
            if before - latest > seconds + _EXACT_SECONDS:
                return counts
            earliest, latest = before, after
        return [*counts, len(self.sent)]
