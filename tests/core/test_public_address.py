"""Public addresses."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.core.public_address import is_public
from tests.chance import chance

PUBLIC = """
1.1.1.1 8.8.8.8 52.216.0.1 168.63.129.15 172.32.0.1 223.255.255.255 2606:4700::1111 2a00::1 2001:4860::8888
"""
OTHERS = """
0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.100.100.200 100.127.255.255 127.0.0.1 127.255.255.254 168.63.129.16
169.254.169.254 169.254.170.2 172.16.0.1 172.31.255.255 192.0.0.192 192.0.2.1 192.88.99.1 192.168.1.1
198.18.0.1 198.51.100.7 203.0.113.9 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255
:: ::1 ::ffff:8.8.8.8 ::ffff:127.0.0.1 ::8.8.8.8 64:ff9b::a9fe:a9fe 64:ff9b::8.8.8.8 64:ff9b:1::1 100::1
fc00::1 fd00:ec2::254 fd20:ce::254 fe80::1 fe80::1%eth0 fec0::1 ff02::1 2001::1 2001:10::1 2001:db8::1
2002:a9fe:a9fe::1 2002:808:808::1 3fff::1 4000::1 5f00::1
"""


class PublicAddressTests(SynchronousTestCase):
    """L{is_public}."""

    def test_public(self) -> None:
        """Addresses that everybody can reach are public."""
        for text in PUBLIC.split():
            self.assertTrue(is_public(ip_address(text)), text)

    def test_others(self) -> None:
        """Addresses of this host, its network, its cloud, and those that stand for others are not."""
        for text in OTHERS.split():
            self.assertFalse(is_public(ip_address(text)), text)

    def test_against_python(self) -> None:
        """Nothing is public that Python calls private, reserved, multicast, link-local or loopback."""
        random = chance(self.id())
        for _ in range(20_000):
            for address in (ip_address(random.getrandbits(32)), ip_address(random.getrandbits(128))):
                if is_public(address):
                    self.assertTrue(address.is_global, address)
                    self.assertFalse(address.is_multicast or address.is_reserved or address.is_link_local)

    def test_any_of_2000(self) -> None:
        """Of IPv6, nothing outside of 2000::/3 is public."""
        random = chance(self.id())
        for _ in range(20_000):
            address = ip_address(random.getrandbits(128) | (1 << 120))
            self.assertTrue(address in ip_network("2000::/3") or not is_public(address), address)
