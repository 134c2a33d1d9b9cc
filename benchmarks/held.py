"""
The daemon, with a watch on its reactor: the longest time for which anything held it up.

usage: held.py FILE twistd OPTIONS…

C{FILE} is shared memory, of L{Held}. Nothing is measured until it says so: a timer of a millisecond costs a
few per cent of a CPU.
"""

from __future__ import annotations

import mmap
import struct
import sys
import time
from pathlib import Path

# Whether it is measured, and the longest time so far, in seconds.
_SHARED = struct.Struct("=Bd")
_EACH_SECONDS = 0.001
_ASLEEP_SECONDS = 0.1


class Held:
    """
    What the watch has found.

    @param path: of the file, which is created if it is not there.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(mmap.PAGESIZE))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), mmap.PAGESIZE)

    def begin(self) -> None:
        """Begin to measure, and wait until the watch does."""
        _SHARED.pack_into(self._memory, 0, 1, 0.0)
        time.sleep(2 * _ASLEEP_SECONDS)
        _SHARED.pack_into(self._memory, 0, 1, 0.0)

    def end(self) -> float:
        """Stop measuring. Return the longest time that the reactor was held up, in seconds."""
        longest: float = _SHARED.unpack_from(self._memory)[1]
        _SHARED.pack_into(self._memory, 0, 0, 0.0)
        return longest

    def watch(self) -> None:
        """Measure on the reactor, from here on."""
        from twisted.internet import reactor

        due = 0.0

        def look() -> None:
            nonlocal due
            now = time.monotonic()
            is_on, longest = _SHARED.unpack_from(self._memory)
            if is_on:
                _SHARED.pack_into(self._memory, 0, is_on, max(longest, now - due if due else 0.0))
            pause = _EACH_SECONDS if is_on else _ASLEEP_SECONDS
            due = now + pause
            reactor.callLater(pause, look)

        # The daemon sets the reactor's clock before that.
        reactor.callWhenRunning(look)


if __name__ == "__main__":
    held = Held(Path(sys.argv[1]))
    sys.argv = sys.argv[2:]
    held.watch()

    from twisted.scripts.twistd import run

    run()
