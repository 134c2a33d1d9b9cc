"""C{POST /filters}."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet import error
from twisted.internet.defer import Deferred

from pcapsvc.core.errors import NodeBusy
from pcapsvc.core.filter import FilterRejected, Program
from pcapsvc.core.rate import RequestRate
from pcapsvc.core.role import Role
from pcapsvc.testing_packets import MemoryPacketSystem
from pcapsvc.web.filters import MOST_AT_ONCE, Filters
from tests.unit.http_case import HTTPTestCase, Response, Transport, token


class Host(MemoryPacketSystem):
    """
    A packet system whose compiler the test controls.

    @ivar asked: the interface and the filter of each that is to be compiled.
    @ivar compiling: the Deferred of each, from now on; L{None} compiles it at once.
    @ivar cancelled: those that were cancelled.
    """

    def __init__(self) -> None:
        super().__init__("mem0", "mem1")
        self.asked: list[tuple[str | None, str]] = []
        self.compiling: list[Deferred[Program]] | None = None
        self.cancelled: list[Deferred[Program]] = []
        self.compile_seconds = 0.0

    def compile_filter(self, interface: str | None, *, snap_length: int, bpf: str) -> Deferred[Program]:
        """Compile a filter."""
        self.asked.append((interface, bpf))
        if self.compiling is not None:
            self.compiling.append(Deferred(self.cancelled.append))
            return self.compiling[-1]
        return super().compile_filter(interface, snap_length=snap_length, bpf=bpf).addCallback(self.timed)

    def timed(self, program: Program) -> Program:
        """A program of three instructions that took a while."""
        return Program(bpf=program.bpf, instructions=bytes(24), compile_seconds=self.compile_seconds)


class FiltersCase(HTTPTestCase):
    """A resource that compiles filters."""

    def setUp(self) -> None:
        """An alias for two interfaces, and a low rate."""
        super().setUp()
        self.host = Host()
        self.host.filters.update({"udp": lambda data: True, "tcp  or udp": lambda data: True})
        filters = Filters(
            self.clock,
            self.host,
            interfaces_by_alias={"both": ("mem0", "mem1"), "gone": ("mem0", "mem7")},
            snap_length=512,
            max_characters=25,
            rate=RequestRate(20),
        )
        self.source.root.putChild(b"filters", filters)

    def check(self, *body: Any, **fields: Any) -> Response:
        """The answer to a filter."""
        raw = body[0] if body else json.dumps(fields).encode()
        return self.ask("POST", "/filters", raw)

    def begin(self, bpf: str = "udp") -> Transport:
        """Ask, without an answer yet."""
        body = json.dumps({"bpf": bpf}).encode()
        return self.say(b"POST /filters HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


class FiltersTests(FiltersCase):
    """Filters are compiled, and the result is returned."""

    def test_valid(self) -> None:
        """A filter that can be compiled is valid, on Ethernet if no interface is given."""
        for given, asked in (
            ({}, [None]),
            ({"interface": None}, [None]),
            ({"interface": ""}, [None]),
            ({"interface": "mem0"}, ["mem0"]),
            ({"interface": "both"}, ["mem0", "mem1"]),
        ):
            self.host.asked.clear()
            response = self.check(bpf="udp", **given)
            expected = {"valid": True, "filter": "udp", "instructions": 3}
            self.assertEqual((response.code, response.content), (200, expected))
            self.assertEqual(self.host.asked, [(each, "udp") for each in asked])

    def test_plain_words(self) -> None:
        """Fields in plain words become a filter, which is in the answer, and is compiled with C{bpf}."""
        wanted = "tcp and port 80 and (udp)"
        self.host.filters.update({each: lambda data: True for each in (wanted, "port 80", "")})
        for given, bpf in (
            ({"port": 80}, "port 80"),
            ({"PORT": [80], "host": "", "net": [], "src": None}, "port 80"),
            ({"port": 80, "protocol": "TCP", "bpf": "udp"}, wanted),
            ({"bpf": ""}, ""),
        ):
            self.host.asked.clear()
            response = self.check(**given)
            self.assertEqual(response.content, {"valid": True, "filter": bpf, "instructions": 3}, given)
            self.assertEqual(self.host.asked, [(None, bpf)])

    def test_plain_words_invalid(self) -> None:
        """What is wrong is reported by field; what libpcap refuses may be the fault of any of several."""
        for given, path, bpf in (
            ({"host": "web-1"}, "host", None),
            ({"port": 80, "bpf": "udp) or (tcp"}, "bpf", None),
            ({"port": [1000, 2000, 3000]}, "port", None),
            ({"vlan": 9}, "vlan", "vlan 9"),
            ({"vlan": 9, "bpf": "udp"}, "bpf", "vlan 9 and (udp)"),
            ({"vlan": 9, "port": 80}, "filter", "vlan 9 and port 80"),
        ):
            response = self.check(**given)
            self.assertEqual((response.code, response.content["valid"]), (200, False))
            self.assertEqual(response.content["filter"], bpf)
            [problem] = response.content["problems"]
            self.assertEqual(problem["path"], path, given)

    def test_white_space(self) -> None:
        """White space is what it is in a request."""
        self.assertTrue(self.check(bpf="tcp\r or udp").content["valid"])

    def test_invalid(self) -> None:
        """A filter that can't be compiled is invalid, and so is one whose interface can't be captured on."""
        for given, path, rule in (
            ({"bpf": "udp and ("}, "bpf", "libpcap says: syntax error"),
            (
                {"bpf": "udp", "interface": "none0"},
                "interface",
                "can't be used: none0: no such interface",
            ),
            ({"bpf": "udp", "interface": "gone"}, "interface", "can't be used: mem7: no such interface"),
        ):
            response = self.check(**given)
            self.assertEqual((response.code, response.content["valid"]), (200, False))
            [problem] = response.content["problems"]
            self.assertEqual((problem["path"], problem["rule"]), (path, rule))

    def test_not_compiled(self) -> None:
        """What a request may not have isn't compiled: too many characters, names that need DNS."""
        for bpf, rule in (
            ("x" * 26, "up to 25 characters"),
            ("host example", "names are not looked up"),
        ):
            [problem] = self.check(bpf=bpf).content["problems"]
            self.assertIn(rule, problem["rule"])
        self.assertEqual(self.host.asked, [])

    def test_bad_requests(self) -> None:
        """Every problem of a body is listed."""
        for body, paths in (
            (b"", ["request"]),
            (b"[]", ["request"]),
            (b'{"bpf": "udp", "interface": [[[[', ["request"]),
            (b"{}", ["bpf"]),
            (b'{"bpf": null}', ["bpf"]),
            (b'{"bpf": 5, "interface": ["mem0"]}', ["bpf", "interface"]),
            (b'{"bpf": "udp", "inteface": "mem0"}', ["inteface"]),
            (b'{"bfp": "udp"}', ["bfp"]),
            (b'{"inteface": "mem0"}', ["inteface", "bpf"]),
            (b'{"vlan": "x", "host": "web-1", "bpf": "udp) or (tcp"}', ["vlan", "host", "bpf"]),
            (b'{"bpf": "\\u0000"}', ["bpf"]),
        ):
            response = self.check(body)
            self.assertEqual(response.code, 400, body)
            self.assertEqual([each["path"] for each in response.content["problems"]], paths)
        self.assertEqual(self.host.asked, [])

    def test_one_interface(self) -> None:
        """That the interface is not a list, as a request has it, is said."""
        for names in (["mem0"], ["mem0", "mem1"], [""]):
            [problem] = self.check(json.dumps({"bpf": "udp", "interface": names}).encode()).content[
                "problems"
            ]
            self.assertEqual(problem["path"], "interface")
            self.assertEqual(problem["rule"], "must be one name, not a list: text of up to 255 characters")

    def test_in_time(self) -> None:
        """If it takes too long, that is answered, it is no longer compiled, and it counts for the rate."""
        self.host.compiling = []
        transport = self.begin()
        self.clock.advance(4.4)
        self.assertEqual(transport.value(), b"")
        self.clock.advance(0.1)
        self.assertIn(b" 503 ", transport.value())
        self.assertIn(b"was not compiled within 4.5 s", transport.value())
        self.assertEqual(self.host.cancelled, self.host.compiling)
        self.assertEqual(self.check(bpf="udp").code, 429)
        self.clock.advance(18)
        self.host.compiling = None
        self.assertEqual(self.check(bpf="udp").code, 200)

    def test_disconnected(self) -> None:
        """If the client goes away, its filter is no longer compiled, which counts for the rate as well."""
        self.host.compiling = []
        transport = self.begin()
        self.clock.advance(2)
        self.assertEqual(self.host.cancelled, [])
        transport.lose(error.ConnectionLost())
        self.assertEqual(self.host.cancelled, self.host.compiling)
        self.assertEqual(self.check(bpf="udp").code, 429)
        self.assertEqual([event for event in self.events if event["log_level"].name != "info"], [])

    def test_busy(self) -> None:
        """No more than a few are compiled at once."""
        self.host.compiling = []
        transports = [self.begin() for _ in range(MOST_AT_ONCE)]
        response = self.check(bpf="udp")
        self.assertEqual((response.code, response.headers["retry-after"]), (503, "1"))
        self.host.compiling[0].errback(NodeBusy("the filter compiler did not start"))
        self.assertIn(b"the filter compiler did not start", transports[0].value())
        self.host.compiling[1].callback(Program(bpf="udp", instructions=bytes(8)))
        self.assertIn(b'"instructions": 1', transports[1].value())
        self.begin()
        self.begin()
        self.assertEqual(self.check(bpf="udp").code, 503)
        self.assertEqual(len(self.host.compiling), MOST_AT_ONCE + 2)

    def test_rate(self) -> None:
        """So many a second, and less if they take long, whether they are valid or not."""
        codes = [self.check(bpf="udp").code for _ in range(22)]
        self.assertEqual(codes, [200] * 20 + [429] * 2)
        self.clock.advance(1)
        self.host.compile_seconds = 1.1
        self.assertEqual(self.check(bpf="udp").code, 200)
        self.clock.advance(3)
        self.assertEqual(self.check(bpf="udp").code, 429)
        self.clock.advance(2)
        self.assertEqual(self.check(bpf="udp").code, 200)
        self.clock.advance(100)
        self.host.compiling = []
        transport = self.begin()
        self.host.compiling[0].errback(FilterRejected("udp", "is hard", compile_seconds=2))
        self.assertIn(b"is hard", transport.value())
        self.assertEqual(self.check(bpf="udp").code, 429)


class RoleTests(FiltersCase):
    """Who may check filters."""

    tokens = (token("a-token-to-read", Role.READ), token("a-token-to-capture", Role.CAPTURE))

    def test_role(self) -> None:
        """Whoever may read."""
        for secret, code in (
            ("a-token-to-read", 200),
            ("a-token-to-capture", 403),
            ("no-token-of-ours", 401),
        ):
            header = f"Bearer {secret}"
            self.assertEqual(self.ask("POST", "/filters", b'{"bpf": "udp"}', Authorization=header).code, code)
