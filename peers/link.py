"""A network link between this host and one in a network namespace, which can be taken down."""

from __future__ import annotations

import itertools
import subprocess
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import TypeVar

from peers.claim import claim
from peers.requirement import require_command
from peers.wire import Wire, within

# 198.18.0.0/15 has room for 32,768 networks of four addresses. Each process has 64, and reuses them.
_FIRST = int(IPv4Address("198.18.0.0"))
_OWN = 64
_own_first = _OWN * claim("networks", 32_768 // _OWN)
_numbers = itertools.count()
_PATIENCE_SECONDS = 180.0

Result = TypeVar("Result")


class Link:
    """
    A L{Wire} with an address at each end, from the range for network tests (198.18.0.0/15, RFC 2544). No two
    processes use the same addresses.

    While it is down, packets are lost silently: there is no reset, no ICMP, and ARP doesn't fail, as if the
    fault were some hops away. Inside the namespace, the far address still answers.

    @ivar near: the address in the test's own namespace.
    @ivar far: the address in the other namespace.
    @ivar wrapper: the prefix of a command that is to run there.
    """

    def __init__(self) -> None:
        self._wire = Wire()
        self._program = require_command("ip", "iproute2")
        network = _FIRST + 4 * (_own_first + next(_numbers) % _OWN)
        self.near, self.far = str(IPv4Address(network + 1)), str(IPv4Address(network + 2))
        self.wrapper = (self._program, "netns", "exec", self._wire.namespace)

    def start(self) -> None:
        """Make it, and bring it up."""
        self._wire.start()
        self._ip_there("link", "set", "lo", "up")
        # Without a carrier, packets must not take another route, which would lead out of this host.
        Path("/proc/sys/net/ipv4/conf", self._wire.interface, "ignore_routes_with_linkdown").write_text("0")
        self._ip("address", "add", f"{self.near}/30", "dev", self._wire.interface)
        self._ip_there("address", "add", f"{self.far}/30", "dev", self._wire.far)
        there = self._ip_there("-br", "link", "show", self._wire.far).split()[2]
        self._ip(*self._neighbour(self.far, there, self._wire.interface))
        self._know_the_near_end()

    def stop(self) -> None:
        """Remove it."""
        self._wire.stop()

    def down(self) -> None:
        """Take the far end down. The near end stays up, without a carrier."""
        self._ip_there("link", "set", self._wire.far, "down")
        self._wait_until_cut()

    def up(self) -> None:
        """Bring it up again."""
        self._ip_there("link", "set", self._wire.far, "up")
        self._wire.wait_until_up()
        self._know_the_near_end()

    @property
    def sent_bytes(self) -> int:
        """How much was sent from the near end, link layer included."""
        return int(Path("/sys/class/net", self._wire.interface, "statistics/tx_bytes").read_text())

    def there(self, function: Callable[..., Result], *args: object) -> Result:
        """
        Call a function in the far namespace, where its sockets are created.

        @return: the function's result.
        """
        return within(self._wire.namespace, lambda: function(*args))

    def _know_the_near_end(self) -> None:
        # An end that was down has lost its neighbours, even permanent ones.
        here = Path("/sys/class/net", self._wire.interface, "address").read_text().strip()
        self._ip_there(*self._neighbour(self.near, here, self._wire.far))

    @staticmethod
    def _neighbour(address: str, hardware: str, interface: str) -> list[str]:
        return ["neighbour", "replace", address, "lladdr", hardware, "nud", "permanent", "dev", interface]

    def _ip(self, *words: str) -> str:
        run = subprocess.run([self._program, *words], check=True, capture_output=True, text=True, timeout=60)
        return run.stdout

    def _ip_there(self, *words: str) -> str:
        return self._ip("-n", self._wire.namespace, *words)

    def _wait_until_cut(self) -> None:
        file = Path("/sys/class/net", self._wire.interface, "carrier")
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while file.read_text().strip() != "0":
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self._wire.interface} still has a carrier")
            time.sleep(0.005)
