"""Filters for one of several VLANs."""

from __future__ import annotations

import struct

from twisted.trial import unittest

from pcapsvc.core.filter import Program
from pcapsvc.core.vlan_choice import VlanChoice, vlan_choice, vlan_text

ETHERNET, COOKED, RAW = 1, 113, 12
SEVERAL = "vlan and (ether[14:2] & 0xfff = 7 or ether[14:2] & 0xfff = 8)"


class VlanChoiceTests(unittest.SynchronousTestCase):
    """What is recognized by its text."""

    def test_text(self) -> None:
        """One VLAN is what it is in pcap-filter(7); of several, the bytes of the tag are compared."""
        self.assertEqual((vlan_text([7]), vlan_text([7, 8])), ("vlan 7", SEVERAL))

    def test_recognized(self) -> None:
        """Several VLANs are recognized, and one on all interfaces, with what follows."""
        for bpf, link_type, numbers, rest in (
            (SEVERAL, ETHERNET, (7, 8), "vlan"),
            (
                f"{SEVERAL} and tcp and (port 1 or port 2)",
                ETHERNET,
                (7, 8),
                "vlan and tcp and (port 1 or port 2)",
            ),
            (SEVERAL, COOKED, (7, 8), ""),
            (f"{SEVERAL} and udp", COOKED, (7, 8), "udp"),
            ("vlan 7", COOKED, (7,), ""),
            ("vlan 4095 and host 192.0.2.1 and not (tcp)", COOKED, (4095,), "host 192.0.2.1 and not (tcp)"),
        ):
            wanted = VlanChoice(numbers=numbers, bpf=rest, has_bytes=link_type == ETHERNET)
            self.assertEqual(vlan_choice(bpf, link_type), wanted, bpf)

    def test_not_recognized(self) -> None:
        """What libpcap can compile is left to it, and so is what means something else."""
        for bpf, link_type in (
            ("", COOKED),
            ("vlan 7", ETHERNET),
            ("vlan", COOKED),
            (SEVERAL, RAW),
            ("vlan 7", RAW),
            ("vlan 7 and tcp or udp", COOKED),
            ("vlan 7 and tcp||udp", COOKED),
            ("vlan 7 and (tcp)or(udp)", COOKED),
            ("vlan 7 and tcp) or (udp", COOKED),
            ("vlan 7 and (tcp", COOKED),
            ("vlan 4096", COOKED),
            ("vlan 010", COOKED),
            (SEVERAL.replace("7", "07"), ETHERNET),
            ("vlan 7 or vlan 8", COOKED),
            ("not vlan 7", COOKED),
            ("vlan \u0667", COOKED),
            (f"({SEVERAL})", ETHERNET),
            (f"{SEVERAL} or udp", ETHERNET),
            (f"{SEVERAL} and udp or tcp", ETHERNET),
        ):
            self.assertIsNone(vlan_choice(bpf, link_type), bpf)

    def test_program(self) -> None:
        """The comparison comes first, and each of its ways leads to the rest, or to no match."""
        rest = struct.pack("=HBBI", 0x06, 0, 0, 99)
        for link_type in (ETHERNET, COOKED):
            choice = vlan_choice(SEVERAL, link_type)
            assert choice is not None
            program = choice.before(Program(bpf=choice.bpf, instructions=rest), SEVERAL)
            self.assertEqual(program.bpf, SEVERAL)
            for tag in (7, 8, 9, 0x7007, 0x1008, None):
                wanted = 99 if tag is not None and tag & 0xFFF in (7, 8) else 0
                self.assertEqual(self.run_program(program, tag, b""), wanted)
            for kind in (0x8100, 0x88A8, 0x9100, 0x0800):
                for tag in (7, 0x7008, 9):
                    data = bytes(12) + struct.pack("!HH", kind, tag)
                    wanted = 99 if link_type == ETHERNET and kind != 0x0800 and tag != 9 else 0
                    self.assertEqual(self.run_program(program, None, data), wanted, (kind, tag))

    def run_program(self, program: Program, tag: int | None, data: bytes) -> int:
        """Run it, as the kernel does (Documentation/networking/filter.rst)."""
        instructions = [*struct.iter_unpack("=HBBI", program.instructions)]
        data = data.ljust(60, b"\0")
        at = a = 0
        while True:
            code, true, false, number = instructions[at]
            at += 1
            if code == 0x06:
                return int(number)
            if number == 0xFFFFF030:
                a = tag is not None
            elif number == 0xFFFFF02C:
                a = tag or 0
            elif code == 0x28:
                a = int.from_bytes(data[number : number + 2], "big")
            elif code == 0x54:
                a &= number
            elif code == 0x05:
                at += number
            elif code == 0x15:
                at += true if a == number else false
            else:
                raise AssertionError(f"unknown code {code:#x}")
