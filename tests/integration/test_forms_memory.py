"""The memory that it takes to deliver a capture in several forms."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from peers.daemon import Daemon
from peers.frames import udp_frame
from tests.integration.test_forms import FormsCase

_MB = 1_000_000
# To compress it several times takes ten seconds of processor time, which others use as well.
_PATIENCE_SECONDS = 400


class Memory(threading.Thread):
    """
    Looks at the memory of a process again and again.

    @ivar most_bytes: the most that it had: resident memory, and files that are in memory only.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._is_over = threading.Event()
        self.most_bytes = 0

    def run(self) -> None:
        """Look."""
        while not self._is_over.wait(0.005):
            self.most_bytes = max(self.most_bytes, self.bytes())

    def bytes(self) -> int:
        """How much it has now."""
        resident = int(Path(f"/proc/{self._pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        files: dict[int, int] = {}
        for path in Path(f"/proc/{self._pid}/fd").iterdir():
            try:
                if os.readlink(path).startswith("/memfd:"):
                    found = os.stat(path)
                    files[found.st_ino] = found.st_blocks * 512
            except OSError:
                continue  # it was closed in the meantime
        return resident + sum(files.values())

    def finish(self) -> int:
        """Look no more. Return the most."""
        self._is_over.set()
        self.join()
        return self.most_bytes


class MemoryTests(FormsCase):
    """A capture of 100 MB that can't be compressed."""

    size = 100 * _MB
    most_more = 32 * _MB
    limits = f"maxpackets = 200000\nmaxbytes = {size}"

    def test_bounded(self) -> None:
        """To deliver it as pcapng in every form at once takes less than 32 MB more than as it is recorded."""
        before = self.most_memory(self.daemon(general=self.limits), "none")
        limits = f'{self.limits}\nformat = "pcapng"'
        after = self.most_memory(self.daemon(general=limits, local="gzip", s3="zstd"))
        self.assertLess(after - before, self.most_more)

    def most_memory(self, daemon: Daemon, compress: str | None = None) -> int:
        """The most memory that a capture takes, from its start to its last delivery."""
        memory = Memory(daemon.pid)
        memory.start()
        capture_id = daemon.capture(
            interface=[self.wire.interface], bytes=self.size, snap=2000, timeout=300, compress=compress
        )
        # More than zstd looks back.
        frames = [udp_frame(number, size=100) + os.urandom(1300) for number in range(5000)]
        path, until = f"/captures/{capture_id}", time.monotonic() + _PATIENCE_SECONDS
        while (state := daemon.request("GET", path)[1])["state"] != "done" and time.monotonic() < until:
            if state["state"] == "capturing":
                self.wire.send(frames, rate=20_000)
            else:
                time.sleep(0.1)
        self.assertEqual({each["state"] for each in state["deliveries"]}, {"delivered"}, daemon.log)
        return memory.finish()
