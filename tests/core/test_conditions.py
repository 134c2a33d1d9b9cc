"""Which packets a request wants, in plain words, and the filter that it means."""

from __future__ import annotations

import json
import re
from typing import Any

from msgspec.structs import replace
from twisted.trial import unittest

from pcapsvc.core.condition_values import PROTOCOLS
from pcapsvc.core.conditions import CONDITIONS
from pcapsvc.core.errors import RequestRejected
from pcapsvc.core.filter import FilterRejected, names_needing_dns
from tests.chance import seeded
from tests.core.test_request import BOUNDS, Requests, message
from tests.examples import HealthCheck, given, settings, strategies

NO_DIRECTION = "can't be used for packets of the past: their direction is not recorded on this interface"
ADDRESS = "must be an IPv4 or IPv6 address; host names are not looked up"
#: Of each field some values, and the filter that they mean.
TRANSLATED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"host": "192.0.2.1"}, "host 192.0.2.1"),
    ({"host": ["192.0.2.1", "2001:DB8:0::1"]}, "host (192.0.2.1 or 2001:db8::1)"),
    ({"host": ["2001:db8::1", "2001:db8:0:0::1"]}, "host 2001:db8::1"),
    ({"net": "0.0.0.0/0"}, "net 0.0.0.0/0"),
    ({"net": ["192.0.2.0/24", "2001:db8::/32"]}, "net (192.0.2.0/24 or 2001:db8::/32)"),
    ({"port": 0}, "port 0"),
    ({"port": [80, 443, 80]}, "port (80 or 443)"),
    ({"portrange": "8000-8100"}, "portrange 8000-8100"),
    ({"portrange": ["0-0", "65535-65535"]}, "portrange (0-0 or 65535-65535)"),
    ({"protocol": "TCP"}, "tcp"),
    ({"protocol": 0}, "proto 0"),
    ({"protocol": ["icmp", "icmp6", "ospf", 255]}, "icmp or icmp6 or proto 89 or proto 255"),
    ({"src": "192.0.2.1"}, "src host 192.0.2.1"),
    ({"dst": "192.0.2.1:443"}, "dst host 192.0.2.1 and dst port 443"),
    ({"dst": "[2001:db8::1]:443"}, "dst host 2001:db8::1 and dst port 443"),
    ({"src": "192.0.2.0/24"}, "src net 192.0.2.0/24"),
    (
        {"src": ["192.0.2.1:443", "2001:db8::/32", "::1", "10.0.0.1", "[::1]:0"]},
        "src host (::1 or 10.0.0.1) or src net 2001:db8::/32 or (src host 192.0.2.1 and src port 443)"
        " or (src host ::1 and src port 0)",
    ),
    ({"net": "2001:db8::/48"}, "net 2001:db8::/48"),
    (
        # libpcap's optimizer would spoil another comparison with the same network.
        {"net": ["2001:db8::/48", "192.0.2.0/24"], "dst": ["::/1", "2001:db8:1::/48"]},
        "(net 192.0.2.0/24 or (src net 2001:db8::/32 and ip6[12:4] < 0x10000)"
        " or (dst net 2001:db8::/32 and ip6[28:4] < 0x10000))"
        " and (dst net 2001:db8:1::/48 or (ip6 and ip6[24:4] < 0x80000000))",
    ),
    ({"flags": "syn"}, "tcp[tcpflags] & tcp-syn != 0 or (ip6[6] = 6 and ip6[53] & 0x02 != 0)"),
    (
        {"flags": ["SYN", "rst"]},
        "tcp[tcpflags] & (tcp-syn|tcp-rst) != 0 or (ip6[6] = 6 and ip6[53] & 0x06 != 0)",
    ),
    ({"protocol": ["tcp", "udp"], "direction": ["in", "out"]}, "tcp or udp"),
    ({"protocol": ["tcp", "udp"], "bpf": "port 53"}, "(tcp or udp) and (port 53)"),
    ({"vlan": 0}, "vlan 0"),
    ({"vlan": [7, 8]}, "vlan and (ether[14:2] & 0xfff = 7 or ether[14:2] & 0xfff = 8)"),
    ({"direction": "in"}, "inbound"),
    ({"direction": ["OUT"]}, "outbound"),
    ({"direction": ["in", "out"]}, ""),
    ({"bpf": "udp or vlan 5"}, "udp or vlan 5"),
    ({"bpf": " ", "port": 53}, "port 53"),
    ({"bpf": "udp) or (tcp"}, "udp) or (tcp"),
    ({"host": "192.0.2.1", "direction": ["in", "out"], "bpf": "udp"}, "host 192.0.2.1 and (udp)"),
    (
        {
            "bpf": "vlan 5 or\rudp",
            "direction": "in",
            "flags": "ack",
            "portrange": "1-2",
            "port": 3,
            "protocol": "tcp",
            "dst": "192.0.2.4",
            "src": "192.0.2.3",
            "net": "192.0.2.0/24",
            "host": "192.0.2.1",
            "vlan": 7,
        },
        "vlan 7 and host 192.0.2.1 and net 192.0.2.0/24 and src host 192.0.2.3 and dst host 192.0.2.4"
        " and tcp and port 3 and portrange 1-2"
        " and (tcp[tcpflags] & tcp-ack != 0 or (ip6[6] = 6 and ip6[53] & 0x10 != 0))"
        " and inbound and (vlan 5 or udp)",
    ),
)
#: Values of texts that no field accepts.
HOSTILE = (
    "1.2.3.4 or host 5.6.7.8",
    "1.2.3.4) or (host 5.6.7.8",
    "1.2.3.4\nor host 5.6.7.8",
    "1.2.3.4\n",
    " 1.2.3.4",
    "fe80::1%eth0",
    "fe80::1%1.2.3.4 or tcp",
    "fe80::1%) or (tcp",
    "[fe80::1%eth0]:80",
    "[::1]:80 or tcp",
    "[::1]:٨٠",
    "::ffff:192.0.2.1",
    "::ffff:192.0.2.1/128",
    "٣.2.3.4",
    "1.2.3.４",
    "01.2.3.4",
    "1.2.3.04",
    "1.2.3.4/032",
    "1.2.3.4/+8",
    "1.2.3.4/ 8",
    "1.2.3.4/255.255.255.0",
    "1.2.3",
    "0x7f.0.0.1",
    "2130706433",
    "1.2.3.4:99999999999999999999",
    "1.2.3.4:080",
    "1.2.3.4:-1",
    "1.2.3.4:",
    "[1.2.3.4]:80",
    "[]:80",
    ":80",
    "[::1",
    "localhost",
    "example.org",
    "any",
    "\\tcp",
    "tcp or udp",
    "80-",
    "-80",
    "80--90",
    "80-90-100",
    "٨٠-٩٠",
    "080-090",
    "0-65536",
    "0-99999999999999999999",
    "x" * 60_000,
    "/" * 60_000,
    "1-" * 30_000,
    ":" * 60_000,
    "in out",
    "ſyn",
    "ı\u0307n",
)

_WORDS = (
    *("192.0.2.1", "2001:db8::1", "::", "192.0.2.0/24", "2001:db8::/47", "[::1]:80", "10.0.0.1:1", "80-90"),
    *("tcp", "icmp", "syn", "in", "out", " or ", ")", "(", "\n", "%", "٣", "0", "fe80::1%x"),
)
_LIKELY_TEXT = strategies.lists(strategies.sampled_from(_WORDS), min_size=1, max_size=2).map("".join)
_ONE = _LIKELY_TEXT | strategies.text(max_size=8) | strategies.integers(-1, 70_000)
_LIKELY = _ONE | strategies.lists(_ONE, max_size=3)
# What a filter may consist of, besides what is read from values.
_OURS = re.compile(
    r"\A(?:[0-9a-f.:/-]+|and|or|host|net|src|dst|port|portrange|proto|vlan|inbound|outbound|ip6?|r?arp|icmp6?"
    r"|igmp|tcp|udp|sctp|ah|esp|pim|tcp-[a-z]+|tcp\[tcpflags\]|ip6\[\d+(?::4)?\]|ether\[14:2\]|0x[0-9a-f]+"
    r"|&|!=|=|<|[|() ])*\Z"
)


class TranslationTests(Requests, unittest.SynchronousTestCase):
    """Valid fields become a filter."""

    def filter(self, **fields: Any) -> str:
        """The filter of a request with these fields."""
        return self.parse(message(**fields)).filter

    def test_translated(self) -> None:
        """Each field has its part, in a fixed order, and C{bpf} is last, in parentheses."""
        for fields, wanted in TRANSLATED:
            self.assertEqual(self.filter(**fields), wanted, fields)
        translated = {name for fields, _ in TRANSLATED for name in fields}
        self.assertEqual(translated, {*CONDITIONS, "bpf"})

    def test_not_given(self) -> None:
        """Empty values are as if a field were left out, but 0 is a port, a VLAN and a protocol."""
        plain = self.parse(message())
        for name in CONDITIONS:
            for nothing in (None, [], *([] if name in ("port", "vlan") else [""])):
                self.assertEqual(self.parse(message(**{name: nothing})), plain, (name, nothing))
        self.assertEqual(plain.filter, "")
        for name in ("port", "vlan", "protocol"):
            self.assertIn(" 0", self.filter(**{name: 0}))

    def test_any_case(self) -> None:
        """Keys are matched in any case, like all others."""
        request = self.parse(b'{"node": "sensor1", "interface": ["eth0"], "HOST": "192.0.2.1", "Port": 1}')
        self.assertEqual(request.filter, "host 192.0.2.1 and port 1")

    def test_field_of_the_filter(self) -> None:
        """What is wrong with a filter is reported of the field that it is from, if that is one."""
        for fields, wanted in (
            ({}, "bpf"),
            ({"bpf": "udp"}, "bpf"),
            ({"host": "192.0.2.1"}, "host"),
            ({"host": "192.0.2.1", "port": 1}, "filter"),
            ({"host": "192.0.2.1", "bpf": "udp"}, "filter"),
        ):
            request = self.parse(message(**fields))
            [problem] = FilterRejected(request.filter, "is wrong").problems_of(request.filter_fields)
            self.assertEqual((problem.path, problem.rule), (wanted, "is wrong"))

    def test_field_at_fault(self) -> None:
        """Of several fields, the one is reported that an interface has no use for."""
        fields = self.parse(message(port=53, vlan=7, direction="in", bpf="udp")).filter_fields
        for rule, wanted, said in (
            (
                "libpcap says: no VLAN support for Raw IP",
                "vlan",
                "can't be used on an interface without VLANs: libpcap says: no VLAN support for Raw IP",
            ),
            (NO_DIRECTION, "direction", NO_DIRECTION),
        ):
            [problem] = FilterRejected("udp", rule).problems_of(fields)
            self.assertEqual((problem.path, problem.value, problem.rule), (wanted, None, said))
            [problem] = FilterRejected("udp", rule).problems_of(["bpf"])
            self.assertEqual((problem.path, problem.value, problem.rule), ("bpf", '"udp"', rule))

    def test_syntax(self) -> None:
        """Of several fields, C{bpf} is the one that can have an error of syntax."""
        fields = self.parse(message(port=53, bpf="udp and")).filter_fields
        said = "libpcap says: can't parse filter expression: syntax error"
        [problem] = FilterRejected("port 53 and (udp and)", said).problems_of(fields)
        self.assertEqual((problem.path, problem.value, problem.rule), ("bpf", None, said))

    def test_second_vlan(self) -> None:
        """On all interfaces, C{vlan} is right, and what C{bpf} asks for behind it may not be."""
        rejection = FilterRejected("vlan 8", "libpcap says: no VLAN support for Linux cooked v1")
        [problem] = rejection.about("vlan 7 and (vlan 8)").problems_of(["vlan", "bpf"])
        self.assertEqual((problem.path, problem.value), ("filter", '"vlan 7 and (vlan 8)"'))


class BadValuesTests(Requests, unittest.SynchronousTestCase):
    """Values that break a rule are reported by field."""

    def test_rules(self) -> None:
        """Each rule is stated in words, about the value that breaks it."""
        for name, value, rule in (
            ("host", "web-1", ADDRESS),
            ("host", "192.0.2.0/24", "must be an address, and is a network: see 'net'"),
            ("host", "192.0.2.9/24", "must be an address, and is a network: see 'net'"),
            ("host", "192.0.2.1:443", "must be an address without a port: see 'port', 'src' and 'dst'"),
            ("host", "[2001:db8::1]:443", "must be an address without a port: see 'port', 'src' and 'dst'"),
            ("host", "[2001:db8::1]", "must be an address without brackets"),
            ("host", "web-1:443", ADDRESS),
            ("host", "fe80::1%eth0", "must have no zone (%)"),
            (
                "host",
                "::ffff:192.0.2.1",
                "is an IPv4 address in the notation of IPv6; packets have 192.0.2.1",
            ),
            ("net", "192.0.2.9/24", "has bits beyond its prefix length; the network is 192.0.2.0/24"),
            ("src", "2001:db8::1/32", "has bits beyond its prefix length; the network is 2001:db8::/32"),
            ("net", "192.0.2.0/33", "must have a prefix length of 0 to 32 after the slash"),
            ("net", "2001:db8::/129", "must have a prefix length of 0 to 128 after the slash"),
            ("net", "192.0.2.1", "must be a network, such as 192.0.2.0/24 or 2001:db8::/32"),
            ("port", 65536, "must be a port number, 0 to 65535"),
            ("port", -1, "must be a port number, 0 to 65535"),
            ("portrange", "90-80", "must begin with the lower port: 80-90"),
            ("protocol", 256, "must be a protocol number, 0 to 255"),
            ("protocol", "17", f"must be a number, 0 to 255, or one of {', '.join(PROTOCOLS)}"),
            ("dst", "192.0.2.1:65536", "must have a port of 0 to 65535"),
            ("flags", "sin", "must be one of fin, syn, rst, psh, ack, urg, ece, cwr"),
            ("vlan", 4096, "must be a VLAN ID, 0 to 4095"),
            ("direction", "inbound", "must be one of in, out"),
        ):
            for values in (value, [value]):
                self.assertEqual(self.problems(message(**{name: values})), {name: rule})

    def test_hostile(self) -> None:
        """No text gets into a filter, whatever it is."""
        for name in CONDITIONS:
            for value in HOSTILE:
                for values in (value, [value]):
                    self.assertEqual([*self.problems(message(**{name: values}))], [name], (name, value[:99]))

    def test_types(self) -> None:
        """Values of other types are rejected, also in lists."""
        numbers = {"port", "vlan"}
        for name in CONDITIONS:
            wrong: list[Any] = [True, 1.5, {}, {"a": 1}, [True], [None], [[]], [1.0], [["192.0.2.1"]], [{}]]
            wrong += ["80", ["80"]] if name in numbers else []
            wrong += [0, 1, [0]] if name not in (*numbers, "protocol") else []
            wrong += [10**400, [10**30], -(10**30)]
            for value in wrong:
                self.assertEqual([*self.problems(message(**{name: value}))], [name], (name, value))

    def test_all_at_once(self) -> None:
        """All fields are reported, and of each up to 20 values."""
        body = message(host=[f"h{n}" for n in range(30)], port=[70_000, 1], bpf="tcp prot 80", packets=0)
        problems = self.all_problems(body)
        self.assertEqual([path for path, _ in problems if path == "host"], ["host"] * 21)
        self.assertIn(("host", "has 10 more values that can't be used"), problems)
        self.assertEqual({path for path, _ in problems}, {"host", "port", "bpf", "packets"})

    def all_problems(self, body: bytes) -> list[tuple[str, str]]:
        """Every problem: its path and its rule."""
        rejection = self.assertRaises(RequestRejected, self.parse, body)
        return [(problem.path, problem.rule) for problem in rejection.problems]

    def test_too_long(self) -> None:
        """A filter that becomes too long is reported by the field that contributes most to it."""
        hosts = [f"2001:db8::{n:x}" for n in range(200)]
        rule = self.problems(message(host=hosts[:100], port=80))["host"]
        self.assertRegex(
            rule, r"makes the filter \d{4} characters long, and it may have up to 512 on this node"
        )
        self.assertEqual([*self.problems(message(host="192.0.2.1", bpf="udp or " * 72 + "udp"))], ["bpf"])
        self.assertIn(
            "up to 256 of them",
            self.problems(json.dumps(json.loads(message(port=[1] * 257))).encode())["port"],
        )
        wide = replace(BOUNDS, max_filter_characters=10_000)
        self.assertEqual(len(self.parse(message(host=hosts), wide).filter.split(" or ")), 200)

    def test_too_many(self) -> None:
        """Values that can't all fit into a filter are counted, and not read."""
        problems = self.problems(message(host=["web-1"] + [f"10.0.0.{n}" for n in range(200)], port=[80, 81]))
        rule = "has 201 values, and the filter may have up to 512 characters on this node"
        self.assertEqual(problems, {"host": rule})
        self.assertEqual(self.parse(message(port=[80] * 256)).filter, "port 80")

    def test_any_text(self) -> None:
        """Whatever a request has, its filter consists of our own words, numbers and addresses."""

        @seeded
        @settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
        @given(strategies.fixed_dictionaries({}, optional=dict.fromkeys(CONDITIONS, _LIKELY)))
        def check(fields: dict[str, Any]) -> None:
            try:
                found = self.parse(message(**fields)).filter
            except RequestRejected as rejection:
                self.assertLessEqual({problem.path for problem in rejection.problems}, set(fields))
                return
            self.assertRegex(found, _OURS)
            self.assertEqual(names_needing_dns(found), ())

        check()

    def test_parentheses(self) -> None:
        """C{bpf} can't get out of its parentheses."""
        for bpf in ("udp) or (tcp", ")(", "udp)", "(udp", "((udp)"):
            problems = self.problems(message(host="192.0.2.1", bpf=bpf))
            self.assertEqual(problems, {"bpf": "must close each parenthesis that it opens, and no other"})

    def test_bare_values(self) -> None:
        """C{bpf} can't begin with a value without a qualifier: it would get that of another field."""
        for bpf in (
            "443",
            " ( not (443 ))",
            "192.0.2.1 or udp",
            "!443&&udp",
            "2001:db8::1",
            "10/8",
            "(1)||udp",
            "0x50",
            "not (0X1F90) or udp",
            "192.0.2.0 mask 255.255.255.0",
        ):
            rule = self.problems(message(port=80, bpf=bpf))["bpf"]
            self.assertEqual(rule, "must say what its first value is, such as 'host 192.0.2.1' or 'port 80'")
        for bpf in (
            "1 = 1",
            "0x50 < len",
            "80 < len",
            "(0x10 & ip[0]) != 0",
            "not udp",
            "udp or port 443",
            "port (80 or 443)",
        ):
            self.assertEqual(self.parse(message(port=80, bpf=bpf)).filter, f"port 80 and ({bpf})")

    def test_beside_stop(self) -> None:
        """They can't be given beside C{stop}."""
        for name in CONDITIONS:
            body = json.dumps({"node": "any", "stop": "r", name: 1}).encode()
            self.assertEqual([*self.problems(body)], [name])
