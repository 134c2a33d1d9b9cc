"""tcpdump, as the reference for what was on the wire."""

from __future__ import annotations

import re
import signal
import struct
import subprocess
import sys
import time
from array import array
from pathlib import Path
from typing import NamedTuple

from peers.frames import NUMBER_AT
from peers.process import OwnProcess
from peers.requirement import require_command, require_root

# Time stamps in microseconds, and in nanoseconds.
_MAGICS = (0xA1B2C3D4, 0xA1B23C4D)
_FILE_HEADER_BYTES = 24
# Seconds, the rest of the time stamp, captured bytes, length on the wire.
_PACKET_HEADER = struct.Struct("=4I")

# What tcpdump(8) writes on SIGUSR1.
_COUNTS = re.compile(
    r"(\d+) packets? captured, (\d+) packets? received by filter, (\d+) packets? dropped by kernel"
)


class Packet(NamedTuple):
    """
    A packet in a capture file.

    @ivar seconds: the time stamp's whole seconds since the epoch.
    @ivar fraction: the rest of the time stamp, in units of the file: microseconds, mostly.
    @ivar length: its length on the wire, in bytes.
    @ivar data: its captured bytes.
    """

    seconds: int
    fraction: int
    length: int
    data: bytes


def read_packets(path: Path) -> list[Packet]:
    """
    All packets of a pcap file in this machine's byte order (draft-ietf-opsawg-pcap).

    @raise ValueError: it is not one, or ends within a packet.
    """
    raw = path.read_bytes()
    if len(raw) < _FILE_HEADER_BYTES or int.from_bytes(raw[:4], sys.byteorder) not in _MAGICS:
        raise ValueError(f"{path} is not a pcap file of this machine")
    # Some files have hundreds of thousands.
    headers, size = _PACKET_HEADER.unpack_from, _PACKET_HEADER.size
    packets = []
    at, end = _FILE_HEADER_BYTES, len(raw)
    while at + size <= end:
        seconds, fraction, captured, length = headers(raw, at)
        at += size
        packets.append(Packet(seconds, fraction, length, raw[at : at + captured]))
        at += captured
    if at != end:
        raise ValueError(f"{path} ends within a packet")
    return packets


def field_of(records: memoryview, size: int, at: int) -> array[int]:
    """
    A number of four bytes, in this machine's byte order, of each of many records.

    @param size: of each record, in bytes.
    @param at: where the number begins.
    """
    joined = bytearray(4 * (len(records) // size))
    for byte in range(4):
        joined[byte::4] = records[at + byte :: size]
    return array("I", bytes(joined))


def numbers_of(records: memoryview, size: int) -> array[int]:
    """
    The numbers of packets of L{peers.frames.udp_frame}, from a pcap file in which all packets have the same
    size: in a hundredth of the time that L{read_packets} takes.

    @param records: the file without its header.
    @param size: of each record: the packet's header and what was captured of it.
    """
    numbers = field_of(records, size, _PACKET_HEADER.size + NUMBER_AT + 4)
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers


class Tcpdump:
    """
    A tcpdump that writes to a file.

    @ivar path: the file.
    """

    def __init__(
        self, interface: str, *, snaplen: int = 262144, filter: str = "", buffer_bytes: int = 32 << 20
    ) -> None:
        """
        @param snaplen: the snap length, in bytes.
        @param filter: as in pcap-filter(7).
        @param buffer_bytes: the size of its ring, in whole KiB.
        """
        require_root("to run tcpdump")
        program = require_command("tcpdump", "tcpdump")
        self._process = OwnProcess("tcpdump")
        self.path = self._process.directory / "tcpdump.pcap"
        self._arguments = [
            *(program, "-i", interface, "-n", "-U", "-B", str(buffer_bytes >> 10)),
            # Otherwise it would change to a user that can't write here.
            *("-Z", "root", "-s", str(snaplen), "-w", str(self.path)),
            *([filter] if filter else []),
        ]

    def start(self) -> None:
        """Start it, and wait until it captures."""
        self._process.start(self._arguments, lambda: "listening on" in self._process.log)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._process.signal(number)

    def wait_for(self, packets: int, patience_seconds: float = 180.0) -> None:
        """
        Wait until it has written a number of packets.

        It reads them up to a second late. In immediate mode it would lose packets, because each would take a
        slot of the maximum size in its ring.
        """
        deadline = time.monotonic() + patience_seconds
        while self._written() < packets:
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"tcpdump wrote {self._written()} of {packets} packets:\n{self._process.log}"
                )
            time.sleep(0.02)

    def catch_up(self, patience_seconds: float = 180.0) -> None:
        """Wait until it has read all packets that have been sent: up to a second longer than they take."""
        deadline = time.monotonic() + patience_seconds
        while time.monotonic() < deadline:
            before = len(self._counts())
            self._process.signal(signal.SIGUSR1)
            while len(counts := self._counts()) == before and time.monotonic() < deadline:
                time.sleep(0.02)
            captured, received, dropped = map(int, counts[-1])
            if captured + dropped >= received:
                return
            time.sleep(0.02)
        raise RuntimeError(f"tcpdump does not read what it has received:\n{self._process.log}")

    def _counts(self) -> list[tuple[str, ...]]:
        """What it has said on each SIGUSR1, of which it has a line."""
        return _COUNTS.findall(self._process.log)

    def finish(self) -> list[Packet]:
        """End it, and return what it wrote."""
        self._process.end()
        return read_packets(self.path)

    def stop(self) -> None:
        """End it, and remove its file."""
        self._process.clean_up()

    def _written(self) -> int:
        try:
            return len(read_packets(self.path))
        except (OSError, ValueError):
            return 0


def tshark_complaint(path: Path) -> str | None:
    """
    What tshark and capinfos report about a capture file.

    @return: L{None} if both read it to its end without a message.
    """
    return _run("tshark", "-n", "-r", str(path))[1] or capinfos_complaint(path)


def capinfos_complaint(path: Path) -> str | None:
    """What capinfos reports about a capture file; L{None} if it reads it to its end without a message."""
    return _run("capinfos", str(path))[1]


def tshark_fields(path: Path, *fields: str) -> tuple[str, str | None]:
    """
    What tshark shows of a capture file.

    @param fields: by their names in Wireshark.
    @return: a line for each packet; and what tshark reports about the file, or L{None}.
    """
    chosen = [word for name in fields for word in ("-e", name)]
    return _run("tshark", "-n", "-r", str(path), "-T", "fields", *chosen)


def _run(program: str, *arguments: str) -> tuple[str, str | None]:
    """What one of Wireshark's programs prints; and what it reports, or L{None}."""
    done = subprocess.run(
        [require_command(program, "tshark"), *arguments], capture_output=True, text=True, timeout=120
    )
    # They warn if they run as root.
    words = [line for line in done.stderr.splitlines() if line and "Running as user" not in line]
    if done.returncode == 0 and not words:
        return done.stdout, None
    return done.stdout, f"{program} ended with {done.returncode}: {' '.join(words)}"
