"""One line about a packet, for the log."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import dpkt
from twisted.logger import Logger

from pcapsvc.core.errors import PcapsvcError
from pcapsvc.core.line_limit import LineLimit

#: How many lines a capture logs in a second; further packets are counted.
LINES_A_SECOND = 100

# Headers are in front. dpkt makes objects of all that a packet holds: of 64 KB for a quarter of a second.
_DECODED_BYTES = 512

# Link-layer types, by draft-ietf-opsawg-pcaplinktype.
_LINK_LAYERS: dict[int, Callable[[bytes], dpkt.Packet]] = {
    0: dpkt.loopback.Loopback,
    1: dpkt.ethernet.Ethernet,
    12: lambda data: _raw_ip(data),
    101: lambda data: _raw_ip(data),
    113: dpkt.sll.SLL,
    228: dpkt.ip.IP,
    229: dpkt.ip6.IP6,
    276: dpkt.sll2.SLL2,
}


class DecodeFailed(PcapsvcError):
    """A packet could not be decoded for the log, and that is to fail its capture."""


class PacketLog:
    """
    Logs the packets of one capture, a line each.

    Whatever a hostile packet makes the decoder raise is a line in the log, and no more.

    @param link_type: of the capture.
    @param now: the time in seconds of any clock that never goes back.
    @param panic: raise L{DecodeFailed} instead, which fails the capture.
    """

    _log = Logger()

    def __init__(self, capture_id: str, link_type: int, *, now: Callable[[], float], panic: bool) -> None:
        self._capture_id = capture_id
        self._link_type = link_type
        self._now = now
        self._panic = panic
        self._limit = LineLimit(LINES_A_SECOND)
        # The lines that wait until they may be logged; L{None} if they may.
        self._held: list[tuple[str, dict[str, Any]]] | None = None

    def hold(self) -> None:
        """Keep all lines until L{release}: what runs in a thread must not log."""
        self._held = []

    def release(self) -> None:
        """Log the lines that were kept."""
        lines, self._held = self._held or (), None
        for form, values in lines:
            self._write(form, **values)

    def packet(self, data: bytes, length: int | None = None) -> None:
        """
        Log one packet.

        @param length: how long it was on the wire, in bytes; L{None} if it wasn't truncated.

        @raise DecodeFailed: if it can't be decoded, and C{panic} is set.
        """
        logged = self._may_log()
        if not (logged or self._panic):
            return
        try:
            line = describe(self._link_type, data, length)
        except Exception as error:
            # dpkt raises IndexError, AttributeError, RecursionError… on hostile packets.
            line = f"{_size(data, length)} that can't be decoded: {type(error).__name__}"
            if self._panic:
                raise DecodeFailed(f"a packet of {line}") from error
        if logged:
            self._write("{capture_id}: packet: {line}", line=line)

    def done(self) -> None:
        """No packet will come any more."""
        self.release()
        self._write_suppressed()

    def _write_suppressed(self) -> None:
        if left_out := self._limit.take_suppressed():
            self._write("{capture_id}: {count} more packets", count=left_out)

    def _write(self, form: str, **values: Any) -> None:
        if self._held is None:
            self._log.info(form, capture_id=self._capture_id, **values)
        else:
            self._held.append((form, values))

    def _may_log(self) -> bool:
        if not self._limit.may_log(self._now()):
            return False
        # The first line of a second comes after the count of the one before.
        self._write_suppressed()
        return True


def describe(link_type: int, data: bytes, length: int | None = None) -> str:
    """
    A packet in one line: its addresses, its protocol, its ports.

    @param length: how long it was on the wire, in bytes; L{None} if it wasn't truncated.

    @raise Exception: of any kind, if the packet can't be decoded.
    """
    layer = _LINK_LAYERS.get(link_type)
    if layer is None:
        return f"link type {link_type}, {_size(data, length)}"
    return f"{_network(layer(data[:_DECODED_BYTES]))}, {_size(data, length)}"


def _size(data: bytes, length: int | None) -> str:
    if length is None or length == len(data):
        return f"{len(data)} bytes"
    return f"{length} bytes ({len(data)} captured)"


def _raw_ip(data: bytes) -> dpkt.Packet:
    return dpkt.ip6.IP6(data) if data[0] >> 4 == 6 else dpkt.ip.IP(data)


def _network(packet: dpkt.Packet) -> str:
    while isinstance(packet, dpkt.ethernet.Ethernet | dpkt.sll.SLL | dpkt.sll2.SLL2 | dpkt.loopback.Loopback):
        inner = packet.data
        if not isinstance(inner, dpkt.Packet):
            return _unknown_network(packet)
        packet = inner
    if isinstance(packet, dpkt.ip.IP | dpkt.ip6.IP6):
        return _transport(packet)
    if isinstance(packet, dpkt.arp.ARP):
        return f"ARP operation {packet.op} {_address(packet.spa)} > {_address(packet.tpa)}"
    return type(packet).__name__


def _unknown_network(packet: dpkt.Packet) -> str:
    kind = getattr(packet, "type", None)
    if isinstance(packet, dpkt.ethernet.Ethernet):
        known = kind in (dpkt.ethernet.ETH_TYPE_IP, dpkt.ethernet.ETH_TYPE_IP6, dpkt.ethernet.ETH_TYPE_ARP)
        if known:
            raise dpkt.UnpackError("cut short, or no packet of its type")
        return f"{packet.src.hex(':')} > {packet.dst.hex(':')} type 0x{packet.type:04x}"
    return f"{type(packet).__name__} of an unknown protocol"


def _transport(packet: dpkt.ip.IP | dpkt.ip6.IP6) -> str:
    source, target = _address(packet.src), _address(packet.dst)
    segment = packet.data
    if isinstance(segment, dpkt.tcp.TCP):
        flags = "".join(letter for bit, letter in enumerate("FSRPAUEC") if segment.flags >> bit & 1) or "-"
        return f"TCP {source}:{segment.sport} > {target}:{segment.dport} flags {flags} seq {segment.seq}"
    if isinstance(segment, dpkt.udp.UDP):
        return f"UDP {source}:{segment.sport} > {target}:{segment.dport}"
    if isinstance(segment, dpkt.Packet):
        return f"{type(segment).__name__} {source} > {target}"
    return f"IP protocol {packet.p} {source} > {target}"


def _address(packed: bytes) -> str:
    address = ip_address(packed)
    return f"[{address}]" if address.version == 6 else str(address)
