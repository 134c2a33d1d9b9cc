"""Many packets a second, and a ring that holds them."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
import threading
import time
from pathlib import Path

from peers.frames import udp_frame
from peers.requirement import require_command
from peers.wire import Wire

#: The configuration of a ring that holds 10,000 packets a second for ten seconds, if a daemon is not run for
#: so long: its blocks are handed over every 40 ms, where the usual ring is full of blocks with hardly any
#: packets in a third of a second.
PATIENT = "[capture]\nbuffersize = 67108864\nreadtimeout = 40\n"

_GENERATOR = Path(__file__).parents[2] / "benchmarks" / "generator.py"


def generate(wire: Wire, packets: int, *, rate: int | None, size: int = 128) -> int:
    """
    Send packets from the far end of a wire, by a process of its own, and wait until it is done.

    @param rate: packets a second; L{None} is as fast as possible.
    @param size: of each packet, in bytes.

    @return: how many were sent: all of them, unless that takes more than a minute.
    """
    words = [require_command("ip", "iproute2"), "netns", "exec", wire.namespace, sys.executable]
    words += [str(_GENERATOR), wire.far, "--packets", str(packets), "--size", str(size)]
    words += [] if rate is None else ["--rate", str(rate)]
    done = subprocess.run(words, check=True, capture_output=True, timeout=120)
    sent: int = json.loads(done.stdout)["sent"]
    return sent


class Sender:
    """
    Sends numbered packets over a wire, 10,000 a second, until it is stopped, and records when.

    @ivar sent: how many were sent.
    """

    _AT_ONCE = 100

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._over = threading.Event()
        # When it began and ended to send each hundred of them.
        self._times: list[tuple[float, float]] = []
        self.sent = 0
        self._thread = threading.Thread(target=self._send)
        self._thread.start()

    def stop(self) -> None:
        """Stop. A second call does nothing."""
        self._over.set()
        self._thread.join()

    def earliest(self, number: int) -> float:
        """The time before which a packet was not sent; infinite if it was not sent at all."""
        at = number // self._AT_ONCE
        return self._times[at][0] if at < len(self._times) else math.inf

    def latest(self, number: int) -> float:
        """The time by which a packet was sent; infinite if it was not sent at all."""
        at = number // self._AT_ONCE
        return self._times[at][1] if at < len(self._times) else math.inf

    def _send(self) -> None:
        for first in itertools.count(0, self._AT_ONCE):
            if self._over.is_set():
                return
            frames = [udp_frame(number) for number in range(first, first + self._AT_ONCE)]
            began = time.time()
            self._wire.send(frames, 10_000.0)
            self._times.append((began, time.time()))
            self.sent += len(frames)
