"""Filters that a request may hold never make libpcap ask a name server: shown by libpcap itself."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pcapy
from twisted.trial import unittest

from pcapsvc.core import filter as room
from pcapsvc.core.filter import names_needing_dns
from peers.requirement import require_command, require_root

_ETHERNET, _LINUX_SLL, _IEEE802_11 = 1, 113, 105
_numbers = itertools.count()

ACCEPTED = [
    "host 192.0.2.1",
    "host 2001:db8::1",
    "host ::1",
    "host ::",
    "host 1::",
    "host ::ffff:192.0.2.1",
    "host abc::192.0.2.1",
    "host a:b:c:d:e:f:1:2",
    "host face:b00c::dead",
    "host face::b00c:1:2:3:4:5",
    "host a:b:c:d:e::f",
    "host a:b:c:d:e:f:192.0.2.1",
    "net 192.0.2",
    "net 10",
    "net 192.0.2.0/24",
    "net 192.0.2.0 mask 255.255.255.0",
    "net 2001:db8::/32",
    "ether host 02:00:00:00:00:01",
    "ether host 02-00-00-00-00-01",
    "ether host 02.00.00.00.00.01",
    "ether host 0200.0000.0001",
    "ether host 020000000001",
    "host deadbeefcafe",
    "host dead.beef.cafe",
    "host de.ad.be.ef.ca.fe",
    "ether proto \\arp",
    "ip proto \\icmp&&host foo.example",
    "port \\http||host foo.example",
    "port \\http[host foo.example",
    "ip proto \\udp or \\icmp",
    "ip proto icmp",
    "port http or https",
    "port http and not domain",
    "port (http or https)",
    "tcp port http and (host 192.0.2.1 or port nosuchservice)",
    "port \\foo",
    "port foo.example",
    "port foo.example and bar.example",
    "src port foo.example or (bar.example)",
    "port 80 and (bar.example or baz.example)",
    "port foo.example- host",
    "(port 80) and bar.example",
    "not port 80 and bar.example",
    "port 80 and 1 = 1 and bar.example",
    "port 80 and\\host bar.example",
    "port 80 and 192.0.2.1 and bar.example",
    "portrange foo-bar.example",
    "portrange 21-23",
    "ip protochain foo.example",
    "ip proto foo.example",
    "ether proto foo.example or bar.example",
    "on eth0 and bar.example",
    "ifname eth0 and bar.example",
    "reason match and bar.example",
    "action pass and bar.example",
    "dir in and bar.example",
    "rset bar.example and foo.example",
    "type mgt subtype beacon",
    "type mgt and bar.example",
    "wlan type mgt subtype foo.example and bar.example",
    "dir fromds and bar.example",
    "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0",
    "tcp[ 13 : 1 ] = 2",
    "icmp[icmptype] = icmp-echo",
    "icmp6[icmp6type] = icmp6-echo",
    "ip[2:2] > 0x40 and len <= 100",
    "vlan 100 and less 64",
    "ether[0] & 1 = 0 and ip[16] >= 224",
    "tcp\tport\n80",
]
REFUSED = [
    "host foo.example",
    "foo.example",
    "src foo.example",
    "dst\nfoo.example",
    "net foo.example",
    "ether host foo.example",
    "gateway foo.example",
    "host tcp-foo",
    "host \\tcp",
    "host \\foo.example",
    "host foo_bar.example",
    "host foo-bar.example",
    "host 192.0.2.1.example",
    "host 1.2.3.4.5",
    "host 192.0.2.",
    "host 0xfoo",
    "host 80foo",
    "host PORT",
    "host fooé",
    "host foo.example-",
    "host foo:80",
    "host ::1foo",
    "host face::b00c::dead",
    "host (192.0.2.1 or foo.example)",
    "host 192.0.2.1 and (foo.example)",
    "host 192.0.2.1 and !foo.example",
    "host 192.0.2.1&&foo.example",
    "host 192.0.2.1||foo.example",
    "port 80 and src foo.example",
    "port http or host foo.example",
    "port 80 and tcp and foo.example",
    "port (http or host foo.example)",
    "(port 80) and (host foo.example)",
    "tcp[0] = foo",
    "ip[0] = 1 and host foo.example",
    "]host foo.example",
    "tcp[0]]host foo.example",
    "tcp[host foo.example",
    "host foo.example ]",
    "port \\[ and host foo.example",
    "port 80 host foo.example",
    "port and host foo.example",
    "port\\host and host foo.example",
]


class Resolver:
    """A network namespace whose only name server counts what it is asked."""

    def __init__(self) -> None:
        require_root("to make a network namespace")
        self._ip = require_command("ip", "iproute2")
        self._name = f"pcapsvc-dns-{os.getpid():x}-{next(_numbers)}"
        self._files = Path("/etc/netns", self._name)

    def _run(self, *words: str) -> None:
        subprocess.run([self._ip, *words], check=True, capture_output=True, timeout=60)

    def start(self) -> None:
        """Make the namespace."""
        self._files.mkdir(parents=True)
        (self._files / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:20 attempts:1\n")
        if os.path.exists("/etc/nsswitch.conf"):
            (self._files / "nsswitch.conf").write_text(
                "hosts: files dns\nnetworks: files dns\nethers: files\nprotocols: files\nservices: files\n"
            )
        self._run("netns", "add", self._name)
        self._run("-n", self._name, "link", "set", "lo", "up")

    def stop(self) -> None:
        """Take it away."""
        delete = [self._ip, "netns", "delete", self._name]
        subprocess.run(delete, check=False, capture_output=True, timeout=60)
        shutil.rmtree(self._files, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._files.parent.rmdir()

    def queries(self, filters: list[str], link_type: int = _ETHERNET) -> dict[str, list[str]]:
        """The names that the compilation of each filter asks the name server for."""
        child = subprocess.run(
            [self._ip, "netns", "exec", self._name, sys.executable, "-m", __name__],
            input=json.dumps([link_type, filters]),
            capture_output=True,
            cwd=Path(__file__).parents[2],
            check=True,
            text=True,
            timeout=120,
        )
        return dict(zip(filters, json.loads(child.stdout), strict=True))


class FilterNamesTests(unittest.SynchronousTestCase):
    """L{names_needing_dns} against the scanner and the grammar of libpcap."""

    def setUp(self) -> None:
        """A name server of our own."""
        self.resolver = Resolver()
        self.addCleanup(self.resolver.stop)
        self.resolver.start()

    def assert_no_queries(self, filters: list[str], link_type: int = _ETHERNET) -> None:
        """Nothing is asked for while these filters are compiled."""
        asked = self.resolver.queries(filters, link_type)
        self.assertEqual({bpf: names for bpf, names in asked.items() if names}, {})

    def test_control(self) -> None:
        """A name in a filter does reach the name server, so the other tests would notice one."""
        asked = self.resolver.queries(["host foo.example", "host 192.0.2.1", "src bar.example"])
        self.assertEqual(set(asked["host foo.example"]), {"foo.example"})
        self.assertEqual(asked["host 192.0.2.1"], [])
        self.assertEqual(set(asked["src bar.example"]), {"bar.example"})

    def test_accepted(self) -> None:
        """No filter of the table that we accept asks for a name, on any of the usual links."""
        self.assertEqual([bpf for bpf in ACCEPTED if names_needing_dns(bpf)], [])
        for link_type in (_ETHERNET, _LINUX_SLL, _IEEE802_11):
            self.assert_no_queries(ACCEPTED, link_type)

    def test_refused(self) -> None:
        """Every filter of the table of tricks is refused."""
        self.assertEqual([bpf for bpf in REFUSED if not names_needing_dns(bpf)], [])

    def test_words(self) -> None:
        """What we take for a word of the language is no name to libpcap."""
        words = room._CONNECTIVES | room._NAMES_ARE_LOCAL | room._OTHER_WORDS | room._CONSTANTS
        filters = [form.format(word) for word in sorted(words) for form in ("host {}", "src {}", "net {}")]
        self.assertEqual([bpf for bpf in filters if names_needing_dns(bpf)], [])
        self.assert_no_queries(filters)


class _Server:
    """A name server that knows nothing, in a process of its own: libpcap holds the interpreter's lock."""

    def __init__(self) -> None:
        asked = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        asked.bind(("127.0.0.1", 53))
        self._names, names = os.pipe()
        self._process = os.fork()
        if not self._process:
            while True:
                query, sender = asked.recvfrom(512)
                os.write(names, f"{_name(query)}\n".encode())
                # RFC 1035, section 4.1.1: a response, recursion available, no such name.
                asked.sendto(query[:2] + b"\x81\x83" + query[4:6] + bytes(6) + query[12:], sender)
        asked.close()
        os.set_blocking(self._names, False)

    def asked(self) -> list[str]:
        """The names asked for since the last call. A query is answered after its name is recorded."""
        with contextlib.suppress(BlockingIOError):
            return os.read(self._names, 65536).decode().split()
        return []

    def stop(self) -> None:
        os.kill(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)


def _name(query: bytes) -> str:
    """The name that a query asks for (RFC 1035, section 4.1.2)."""
    labels, at = [], 12
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode("ascii", "replace"))
        at += 1 + length
    return ".".join(labels)


def main() -> None:
    """In the namespace: compile each filter, and tell what the name server was asked for."""
    link_type, filters = json.load(sys.stdin)
    server = _Server()
    asked = []
    try:
        for bpf in filters:
            with contextlib.suppress(pcapy.PcapError):
                pcapy.compile(link_type, 512, bpf, 1, 0xFFFFFF00)
            asked.append(server.asked())
    finally:
        server.stop()
    json.dump(asked, sys.stdout)


if __name__ == "__main__":
    main()
