"""Many packets a second, from the generator of the benchmarks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from peers.requirement import require_command
from peers.wire import Wire

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
