"""Time limits hold even if the daemon is stopped for a while, as by a debugger."""

from __future__ import annotations

import math
import signal
import time
from operator import itemgetter
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from peers.daemon import Daemon
from peers.frames import number_of, udp_frame
from peers.tcpdump import read_packets
from peers.wire import Wire

_STALL_SECONDS = 3.0
# How exact time limits are.
_EXACT_SECONDS = 0.1
# How long the capture lasts whose time is up while the daemon is stopped.
_DURATION_SECONDS = 2
# After how long without packets the other one ends.
_IDLE_SECONDS = 1
# How often to try to stop it in time, on a machine that is too busy for that.
_ATTEMPTS = 10


class Sent:
    """
    A capture, and packets that are sent to it at certain times.

    All times are in seconds after the request.

    @ivar began: when it was requested, by the wall clock.
    @ivar answered: when the request was answered.
    @ivar due: when each packet is due, by the wall clock.
    @ivar sent: when each packet was sent: not before, and not after. They may be late, if this process is
        held up.
    """

    def __init__(self, daemon: Daemon, wire: Wire, times: list[float], **limits: float) -> None:
        """
        @param times: when to send each packet, in seconds after the answer.
        """
        self._daemon, self._wire = daemon, wire
        self.began = time.time()
        self._capture = daemon.capture(interface=[wire.interface], bpf="udp port 9", **limits)
        answered = time.time()
        self.answered = answered - self.began
        self.due = [answered + at for at in times]
        self.sent: list[tuple[float, float]] = []

    def send(self) -> None:
        """Send the next packet."""
        before = time.time() - self.began
        self._wire.send([udp_frame(len(self.sent))])
        self.sent.append((before, time.time() - self.began))

    def done(self) -> tuple[dict[str, Any], dict[int, float]]:
        """
        Wait for its end.

        @return: its last state; and the numbers of the packets in the file, with the times when they arrived.
        """
        state = self._daemon.done(self._capture)
        path = self._daemon.file_of(self._capture)
        packets = read_packets(path)
        assert (state["packets"], state["dropped"]) == (len(packets), 0), state
        assert state["bytes"] == path.stat().st_size, state
        arrived = {number_of(each.data): each.seconds + each.fraction / 1e6 - self.began for each in packets}
        return state, arrived

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


class StallTests(SynchronousTestCase):
    """Captures of which the time is up while the daemon is stopped."""

    def test_stall(self) -> None:
        """
        A file ends where its duration does, and has everything up to there. Another one ends at the first gap
        that is longer than its idle time.
        """
        daemon = Daemon()
        self.addCleanup(daemon.stop)
        daemon.start()
        times = [0.1 + 0.125 * number for number in range(26)]
        wires = self.wire(), self.wire()
        for _ in range(_ATTEMPTS):
            idle = Sent(
                daemon, wires[0], [0.1, 0.6, 1.2, 2.6, 2.8, 3.0, 3.3], duration=60, timeout=_IDLE_SECONDS
            )
            # Last, as its time is short.
            lasting = Sent(daemon, wires[1], times, duration=_DURATION_SECONDS, timeout=60)
            stopped = self.stall(daemon, lasting, idle)
            # Neither time was up yet.
            if stopped < idle.began + _IDLE_SECONDS:
                break
        else:
            self.fail("the daemon was never stopped while both captures were running")
        state, arrived = lasting.done()
        self.assertEqual(state["reason"], "duration")
        self.assertLess(max(arrived.values()), lasting.answered + _DURATION_SECONDS + _EXACT_SECONDS)
        certain = [number for number, (_, at) in enumerate(lasting.sent) if at < _DURATION_SECONDS]
        self.assertTrue(certain)
        self.assertEqual(list(arrived)[: len(certain)], certain)
        state, arrived = idle.done()
        self.assertEqual(state["reason"], "idle")
        self.assertEqual(list(arrived), list(range(len(arrived))))
        self.assertIn(len(arrived), idle.before_gaps(_IDLE_SECONDS))

    def wire(self) -> Wire:
        """A wire."""
        wire = Wire()
        self.addCleanup(wire.stop)
        wire.start()
        return wire

    def stall(self, daemon: Daemon, *captures: Sent) -> float:
        """
        Send all packets, while the daemon is stopped from 0.2 s on.

        @return: by when it was stopped, by the wall clock.
        """
        stopped = math.inf

        def stop() -> None:
            nonlocal stopped
            daemon.signal(signal.SIGSTOP)
            stopped = time.time()

        stop_at = time.time() + 0.2
        steps = [(at, capture.send) for capture in captures for at in capture.due]
        steps.append((stop_at, stop))
        steps.append((stop_at + _STALL_SECONDS, lambda: daemon.signal(signal.SIGCONT)))
        try:
            for at, step in sorted(steps, key=itemgetter(0)):
                time.sleep(max(0.0, at - time.time()))
                step()
        finally:
            daemon.signal(signal.SIGCONT)
        return stopped
