"""The list of interfaces, against what ip(8) says of them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.core.network_interface import NetworkInterface
from pcapsvc.packets.interface_list import list_interfaces
from peers.requirement import require_command
from peers.wire import Wire
from tests.contracts.test_pcapy_system import ip


def as_ip_says() -> list[NetworkInterface]:
    """Every interface of this network namespace."""
    command = [require_command("ip", "iproute2"), "-json", "address", "show"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
    return [
        NetworkInterface(
            name=each["ifname"],
            index=each["ifindex"],
            is_up="UP" in each["flags"],
            link_type=each["link_type"],
            altnames=tuple(each.get("altnames", ())),
            addresses=tuple(f"{one['local']}/{one['prefixlen']}" for one in each["addr_info"]),
        )
        for each in found
    ]


def lists() -> tuple[list[NetworkInterface], list[NetworkInterface]]:
    """Our list, and that of ip(8) of the same time: other tests make and remove interfaces meanwhile."""
    for _ in range(50):
        before, said, after = [*list_interfaces()], as_ip_says(), [*list_interfaces()]
        if before == after:
            return before, said
    raise AssertionError("the interfaces never stayed the same")


class InterfaceListTests(SynchronousTestCase):
    """Interfaces of this host, and one of the test's."""

    def setUp(self) -> None:
        """A wire whose near end has addresses and alternative names."""
        self.wire = Wire()
        self.addCleanup(self.wire.stop)
        self.wire.start()
        name = self.wire.interface
        ip("link", "property", "add", "dev", name, "altname", f"{name}-alt", "altname", f"{name}-{'x' * 80}")
        ip("address", "add", "192.0.2.77/28", "dev", name)
        ip("address", "add", "192.0.2.1", "peer", "192.0.2.2/32", "dev", name)
        Path("/proc/sys/net/ipv6/conf", name, "disable_ipv6").write_text("0")
        ip("address", "add", "2001:db8::1/64", "dev", name, "nodad")

    def test_all(self) -> None:
        """Every interface has the names, the state, the kind and the addresses that ip(8) shows."""
        (first, *others), said = lists()
        self.assertEqual((first.name, first.index), ("any", 0))
        self.assertEqual(others, said)
        [ours] = [each for each in others if each.name == self.wire.interface]
        self.assertTrue({"192.0.2.77/28", "192.0.2.1/32", "2001:db8::1/64"} <= set(ours.addresses))
        self.assertEqual(len(ours.altnames), 2)

    def test_many(self) -> None:
        """A list that the kernel sends in several parts is complete."""
        name = self.wire.interface
        for number in range(60):
            ip(
                "link",
                "add",
                "link",
                name,
                "name",
                f"{name}.{number + 2}",
                "type",
                "macvlan",
                "mode",
                "bridge",
            )
        ours, said = lists()
        self.assertEqual(ours[1:], said)
