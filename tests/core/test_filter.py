"""Which words of a filter libpcap would look up by DNS; see C{tests/integration/test_filter_names.py}."""

from __future__ import annotations

from twisted.trial import unittest

from pcapsvc.core.filter import follows_header_chains, names_needing_dns
from tests.examples import given, settings
from tests.examples import strategies as st

NO_NAMES = """
tcp
host 192.0.2.1
src host 192.0.2.1 and dst port 443
host 2001:db8::1
host ::ffff:192.0.2.1
net 192.0.2
net 192.0.2.0/24
net 192.0.2.0 mask 255.255.255.0
net 2001:db8::/32
ether host 02:00:00:00:00:01
ether src 02-00-00-00-00-01 or ether dst 0200.0000.0001
tcp port http
port http or https
tcp and (port http or https)
udp portrange 5060-sip
ip proto \\udp or \\icmp
ether proto 0x86dd
tcp[tcpflags] & (tcp-syn|tcp-fin) != 0
tcp[((tcp[12] & 0xf0) >> 2):4] = 0x47455420
icmp[icmptype] != icmp-echo and icmp[0] != icmp-echoreply
ip[2:2] > 576
ip6[6] = 17
ether[0] & 1 = 0 and ip[16] >= 224
len <= 100 and greater 60
vlan 100 and mpls 5
(port 53 or port 67) and not host 192.0.2.7
wlan type mgt subtype beacon
on eth0
llc
llc ui and not llc rnr
""".strip().splitlines()
NAMES = {
    "host foo.example": ["foo.example"],
    "src foo and dst bar": ["foo", "bar"],
    "host foo or host foo": ["foo"],
    "net foo": ["foo"],
    "gateway foo": ["foo"],
    "ether host foo": ["foo"],
    "foo": ["foo"],
    "ui": ["ui"],
    "llc foo": ["foo"],
    "llc ui and ui": ["ui"],
    "host FOO": ["FOO"],
    "host PORT": ["PORT"],
    "port http and host foo": ["foo"],
    "port http and src foo": ["foo"],
    "port (http or host foo)": ["foo"],
    "port 80 and tcp and foo": ["foo"],
    "host 192.0.2.1 and foo": ["foo"],
    "host 192.0.2.1 or not foo": ["foo"],
    "host (192.0.2.1||foo)": ["foo"],
    "host \\tcp": ["tcp"],
    "host \\foo[": ["foo["],
    "host tcp-foo": ["tcp-foo"],
    "host foo_bar": ["foo_bar"],
    "host foo-": ["foo-"],
    "host 192.0.2.1.foo": ["192.0.2.1.foo"],
    "host 1.2.3.4.5": ["1.2.3.4.5"],
    "host 192.0.2.": ["192.0.2."],
    "host 0xfoo": ["0xfoo"],
    "host 80foo": ["80foo"],
    "host foo:80": ["foo:80"],
    "host face::b00c::1": ["face::b00c::1"],
    "host fe80::1%eth0": ["eth0"],
    "host 02:00:00:00:00:01:foo": ["02:00:00:00:00:01:foo"],
    "host\nfoo": ["foo"],
    "host\tfoo\n": ["foo"],
    "host föö": ["f"],
    "tcp[foo] = 1": ["foo"],
    "tcp[foo:2] = 1": ["foo"],
    "tcp[host foo": ["foo"],
    "]]] host foo": ["foo"],
    "host icmp6-packettoobig": ["icmp6-packettoobig"],
    "host ifindex": ["ifindex"],
}


class NamesTests(unittest.SynchronousTestCase):
    """Names are told from addresses, numbers, and words of the language."""

    def test_none(self) -> None:
        """Ordinary filters with no host's name in them are taken."""
        self.assertEqual({bpf: names_needing_dns(bpf) for bpf in NO_NAMES}, dict.fromkeys(NO_NAMES, ()))

    def test_names(self) -> None:
        """A name is found wherever it hides, and told once."""
        self.assertEqual({bpf: list(names_needing_dns(bpf)) for bpf in NAMES}, NAMES)

    def test_empty(self) -> None:
        """No filter has no name."""
        self.assertEqual(names_needing_dns(""), ())
        self.assertEqual(names_needing_dns(" \n"), ())

    def test_chains(self) -> None:
        """The one word that makes a loop is found wherever it is one, and nowhere else."""
        for bpf in ("ip protochain 6", "udp or (ip6 protochain \\udp)", "protochain\n6", "not(protochain 6)"):
            self.assertTrue(follows_header_chains(bpf), bpf)
        for bpf in (*NO_NAMES, *NAMES, "", "ip proto 6", "port protochains", "host \\protochain"):
            self.assertFalse(follows_header_chains(bpf), bpf)

    @settings(max_examples=300, deadline=None)
    @given(
        st.lists(st.sampled_from([*NO_NAMES, "port http", "tcp"]), max_size=3),
        st.sampled_from(["host ", "src ", "dst net ", "not host ", "(src host ", "ether host\n"]),
        st.from_regex(r"[g-z][a-z0-9]{0,5}(\.[a-z]{2,3})?", fullmatch=True).map(lambda name: f"x{name}"),
        st.sampled_from([" and ", " or ", " &&", " || ", " and not "]),
    )
    def test_anywhere(self, before: list[str], keyword: str, name: str, joint: str) -> None:
        """Whatever stands before it, a name behind a host's keyword is found."""
        bpf = joint.join([*before, keyword + name])
        self.assertEqual(names_needing_dns(bpf), (name,))

    @settings(max_examples=500, deadline=None)
    @given(st.text(alphabet=st.sampled_from("ab1.:-_\\[]()!&| \n\té%"), max_size=40))
    def test_any_text(self, bpf: str) -> None:
        """Any text at all is answered, with parts of it."""
        for name in names_needing_dns(bpf):
            self.assertIn(name, bpf)
