"""tcpdump, as the reference for what was on the wire."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import dpkt

from peers.process import OwnProcess
from peers.requirement import require_command, require_root


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
    """All packets of a pcap file in this machine's byte order."""
    raw = path.read_bytes()
    header = dpkt.pcap.LEFileHdr(raw[:24])
    if header.magic not in (dpkt.pcap.TCPDUMP_MAGIC, dpkt.pcap.TCPDUMP_MAGIC_NANO):
        raise ValueError(f"{path} is not a pcap file of this machine")
    packets = []
    at = 24
    while at < len(raw):
        one = dpkt.pcap.LEPktHdr(raw[at : at + 16])
        at += 16
        data = raw[at : at + one.caplen]
        if len(data) != one.caplen:
            raise ValueError(f"{path} ends within a packet")
        packets.append(Packet(one.tv_sec, one.tv_usec, one.len, data))
        at += one.caplen
    return packets


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

    def wait_for(self, packets: int, patience_seconds: float = 60.0) -> None:
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
        except (OSError, ValueError, dpkt.NeedData):
            return 0


def tshark_complaint(path: Path) -> str | None:
    """
    What tshark and capinfos report about a capture file.

    @return: L{None} if both read it to its end without a message.
    """
    for program in ("tshark", "capinfos"):
        read = subprocess.run(
            [require_command(program, "tshark"), *(["-n", "-r"] if program == "tshark" else []), str(path)],
            capture_output=True,
            text=True,
            timeout=120,
        )
        # Wireshark's programs warn if they run as root.
        words = [line for line in read.stderr.splitlines() if line and "Running as user" not in line]
        if read.returncode != 0 or words:
            return f"{program} ended with {read.returncode}: {' '.join(words)}"
    return None
