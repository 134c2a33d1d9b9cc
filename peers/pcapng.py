"""A reader of pcapng files, independent of what writes them: dpkt, and the draft for what dpkt lacks."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import dpkt

from peers.tcpdump import Packet

_STATISTICS = 5


@dataclass(frozen=True)
class PcapngFile:
    """
    A file with one interface.

    @ivar section: the options of the section header, by code.
    @ivar interface: those of the interface.
    @ivar statistics: those of its statistics; L{None} if there are none.
    @ivar digits: how many digits a time stamp has after the second.
    @ivar kinds: the types of the blocks, in order.
    """

    section: dict[int, bytes]
    interface: dict[int, bytes]
    statistics: dict[int, bytes] | None
    link_type: int
    snap_length: int
    digits: int
    packets: list[Packet]
    kinds: list[int]


def read_pcapng(raw: bytes) -> PcapngFile:
    """
    Read a file of a little-endian machine.

    @raise ValueError: if it breaks a rule.
    """
    blocks = list(_blocks(raw))
    header = dpkt.pcapng.SectionHeaderBlockLE(blocks[0][1])
    _expect((header.type, header.bom, header.v_major), (0x0A0D0D0A, 0x1A2B3C4D, 1))
    interface = dpkt.pcapng.InterfaceDescriptionBlockLE(blocks[1][1])
    _expect((blocks[1][0], interface._reserved), (1, 0))
    by_code = _by_code(interface.opts)
    digits = by_code[9][0]
    packets, statistics = [], None
    for kind, block in blocks[2:]:
        if kind == dpkt.pcapng.PCAPNG_BT_EPB:
            one = dpkt.pcapng.EnhancedPacketBlockLE(block)
            _expect((one.iface_id, one.opts), (0, []))
            # dpkt doesn't look at what is behind the packet.
            _expect(block[28 + one.caplen : -4], bytes(-one.caplen % 4))
            seconds, fraction = divmod(one.ts_high << 32 | one.ts_low, 10**digits)
            packets.append(Packet(seconds, fraction, one.pkt_len, one.pkt_data))
        elif kind == _STATISTICS:
            _expect(struct.unpack_from("<I", block, 8), (0,))
            statistics = _options(block[20:-4])
    return PcapngFile(
        section=_by_code(header.opts),
        interface=by_code,
        statistics=statistics,
        link_type=interface.linktype,
        snap_length=interface.snaplen,
        digits=digits,
        packets=packets,
        kinds=[kind for kind, _ in blocks],
    )


def _expect(found: Any, expected: Any) -> None:
    if found != expected:
        raise ValueError(f"{found!r} is not {expected!r}")


def _blocks(raw: bytes) -> Any:
    at = 0
    while at < len(raw):
        kind, length = struct.unpack_from("<II", raw, at)
        _expect(length % 4, 0)
        block = raw[at : at + length]
        _expect(len(block), length)
        _expect(struct.unpack("<I", block[-4:]), (length,))
        yield kind, block
        at += length


def _by_code(options: list[Any]) -> dict[int, bytes]:
    """The options that dpkt has found, without the end of them, which has to be there."""
    _expect(options[-1].code, 0)
    return {one.code: one.data[: one.len] for one in options[:-1]}


def _options(raw: bytes) -> dict[int, bytes]:
    options, at = {}, 0
    while True:
        code, length = struct.unpack_from("<HH", raw, at)
        at += 4
        if code == 0:
            _expect((length, at), (0, len(raw)))
            return options
        options[code] = raw[at : at + length]
        _expect(raw[at + length : at + length + -length % 4], bytes(-length % 4))
        at += length + -length % 4
