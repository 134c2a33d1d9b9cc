"""What a message may say, and why it is rejected."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import msgspec
from twisted.trial import unittest

from pcapsvc.core.errors import Problem, RequestRejected
from pcapsvc.core.label_values import LABEL_CHARACTERS
from pcapsvc.core.request import (
    CaptureRequest,
    OptionFields,
    RequestBounds,
    RequestFields,
    asks_to_be_logged,
    parse_request,
)
from pcapsvc.destinations.s3.options import CANNED_ACLS, S3_FIELDS, S3Options, check_options

BOUNDS = RequestBounds(
    max_packets=50_000,
    max_bytes=100_000_000,
    max_timeout_seconds=300,
    max_duration_seconds=3600,
    max_snap_length=262_144,
    max_filter_characters=512,
    aliases=frozenset({"uplink", "inside", "y"}),
    options=(OptionFields(destination="s3", structure=S3Options, check=check_options),),
)
FIELDS: dict[str, Any] = {
    "node": "sensor1",
    "nodere": "^sensor",
    "requestid": "r-1",
    "interface": ["eth0", "eth1.100"],
    "alias": ["uplink"],
    "tags": "one,two",
    "host": ["192.0.2.1", "2001:db8::1"],
    "net": "192.0.2.0/24",
    "port": [80, 443],
    "portrange": "8000-8100",
    "protocol": ["tcp", 17],
    "src": "192.0.2.1:443",
    "dst": ["198.51.100.0/24"],
    "flags": ["syn", "rst"],
    "vlan": 7,
    "direction": "in",
    "bpf": "tcp port 80",
    "customer": "ACME",
    "snap": 128,
    "packets": 500,
    "alertid": 655443,
    "alertstr": "A-17",
    "timeout": 15,
    "duration": 60,
    "bytes": 1000,
    "before": 30,
    "pastonly": True,
    "beforeoptional": True,
    "rolling": False,
    "format": "pcap",
    "compress": "zstd",
    "packetdebug": True,
    "logrequest": False,
    "folder": "my/folder",
    "bucket": "my-bucket",
    "acl": "public-read",
    "region": "us-east-1",
    "endpoint": "s3.amazonaws.com",
    "encryption": False,
    "storageclass": "STANDARD_IA",
    "kmskeyid": "alias/captures",
}
TEXTS = ("requestid", "tags", "bpf", "customer", "folder", "bucket", "acl", "region", "endpoint")
TEXTS += ("storageclass", "kmskeyid")
NUMBERS = ("snap", "timeout", "duration", "bytes", "before")
EITHER = {"nodere", "alias"}


def message(**fields: Any) -> bytes:
    """A good message, with these fields too, or instead."""
    return json.dumps({"node": "sensor1", "interface": ["eth0"], **fields}).encode()


class Requests:
    def parse(self, body: bytes, bounds: RequestBounds = BOUNDS, **options: bool) -> CaptureRequest:
        """The request of a message."""
        return parse_request(body, bounds, **options)

    def problems(self, body: bytes, bounds: RequestBounds = BOUNDS, **options: bool) -> dict[str, str]:
        """The rule that is reported for each path."""
        try:
            request = parse_request(body, bounds, **options)
        except RequestRejected as rejection:
            return {problem.path: problem.rule for problem in rejection.problems}
        raise AssertionError(f"{request!r} was not refused")


class FieldsTests(Requests, unittest.SynchronousTestCase):
    """Every field: its kind, and its absence."""

    def test_all_fields(self) -> None:
        """There are 41 fields, and each keeps the value that it was given. S3's fields are its options."""
        self.assertEqual({*RequestFields.__struct_fields__, *S3_FIELDS}, set(FIELDS))
        self.assertEqual(len(FIELDS), 41)
        for left_out in (("nodere", "alias"), ("node", "interface")):
            given = {key: value for key, value in FIELDS.items() if key not in left_out}
            request = self.parse(json.dumps(given).encode())
            for key, value in FIELDS.items():
                expected = None if key in left_out else tuple(value) if isinstance(value, list) else value
                found = request.options["s3"] if key in S3_FIELDS else msgspec.structs.asdict(request)
                self.assertEqual(found[key], expected, key)

    def test_null(self) -> None:
        """C{null} is as if a field were left out, whichever it is."""
        plain = self.parse(message())
        for field in set(FIELDS) - {"node", "interface"}:
            self.assertEqual(self.parse(message(**{field: None})), plain, field)

    def test_empty_means_not_given(self) -> None:
        """So are an empty text, an empty list and a zero, in fields of the same kind."""
        plain = self.parse(message())
        empty: dict[str, Any] = {
            **dict.fromkeys((*TEXTS, "nodere", "alertid", "alertstr"), ""),
            "alias": [],
            **dict.fromkeys((*NUMBERS, "alertid", "alertstr"), 0),
        }
        self.assertEqual(self.parse(message(**empty)), plain)
        for field in ("alertid", "alertstr"):
            self.assertEqual(self.parse(message(**{field: ""})), plain)

    def test_empty_of_another_kind(self) -> None:
        """Empty values of a wrong kind are rejected: C{"bpf": []} must never capture everything."""
        for field in ("nodere", *TEXTS):
            if field in LABEL_CHARACTERS:
                continue
            for value in ([], 0, False, {}):
                self.assertIn(field, self.problems(message(**{field: value})), (field, value))
        for field in (*NUMBERS, "packets"):
            for value in ("", [], False, 0.0, {}):
                self.assertIn(field, self.problems(message(**{field: value})), (field, value))
        for field in ("packetdebug", "logrequest", "encryption", "pastonly", "beforeoptional", "rolling"):
            for value in ("", [], 0, "true", 1):
                self.assertIn(field, self.problems(message(**{field: value})), (field, value))
        for value in ("", 0, {}):
            self.assertIn("alias", self.problems(message(alias=value)), value)

    def test_zero_packets(self) -> None:
        """C{"packets": 0} is rejected: it can't be meant as a limit."""
        self.assertEqual(self.problems(message(packets=0)), {"packets": "must be a whole number, 1 or more"})

    def test_integers_are_integers(self) -> None:
        """A whole number is not a boolean, a float or a text, and not negative."""
        for field in (*NUMBERS, "packets"):
            for value in (True, 5.0, 1.5, "5", -1, [5], {"a": 5}):
                self.assertEqual(
                    self.problems(message(**{field: value})),
                    {field: "must be a whole number, 1 or more"},
                    (field, value),
                )

    def test_upper_bounds(self) -> None:
        """Each number may be up to its limit, and is rejected above it, not reduced."""
        for field, most in (
            ("packets", 50_000),
            ("bytes", 100_000_000),
            ("timeout", 300),
            ("duration", 3600),
            ("snap", 262_144),
            ("before", 604_800),
        ):
            self.assertEqual(getattr(self.parse(message(**{field: most})), field), most)
            for over in (most + 1, 2**63, 2**64, 10**30):
                self.assertEqual(
                    self.problems(message(**{field: over})),
                    {field: f"must be at most {most} on this node"},
                    (field, over),
                )

    def test_past(self) -> None:
        """How a request looks back has no effect unless it says how far; not to look back has none either."""
        for flag in ("pastonly", "beforeoptional"):
            for nothing in ({}, {"before": 0}, {"before": None}):
                self.assertEqual(
                    self.problems(message(**{flag: True, **nothing})),
                    {flag: "has no effect without 'before'"},
                )
            self.assertEqual(getattr(self.parse(message(**{flag: False})), flag), False)
        rule = "must be a whole number, 1 or more"
        self.assertEqual(self.problems(message(before=-1, pastonly=True)), {"before": rule})
        self.assertEqual(self.parse(message(BEFORE=5, PastOnly=True)).before, 5)

    def test_rolling(self) -> None:
        """A rolling capture has a size, an age and a duration. What would end it otherwise is a problem."""
        request = self.parse(message(Rolling=True, bytes=1000, before=5, duration=60, beforeoptional=True))
        self.assertEqual((request.rolling, request.bytes, request.before), (True, 1000, 5))
        rule = "can't be given together with 'rolling'"
        self.assertEqual(
            self.problems(message(rolling=True, packets=5, timeout=5, before=5, pastonly=True)),
            dict.fromkeys(("packets", "timeout", "pastonly"), rule),
        )
        self.assertIn("packets", self.problems(message(rolling=True, packets=0)))
        for nothing in ({"packets": None}, {"timeout": 0}, {"before": 5, "pastonly": False}):
            self.assertEqual(self.parse(message(rolling=True, **nothing)).rolling, True)
        self.assertEqual(self.parse(message(rolling=False, packets=5, timeout=5)).packets, 5)

    def test_huge_integers(self) -> None:
        """A number with thousands of digits is rejected, at no other cost."""
        for digits in (4000, 4299, 4300, 4301, 60_000):
            body = message().replace(b"}", b', "packets": ' + b"9" * digits + b"}")
            self.assertEqual(len(self.problems(body)), 1, digits)

    def test_alertid(self) -> None:
        """An alert's id may be a whole number or a text, and is kept as it is."""
        for field in ("alertid", "alertstr"):
            for value in (1, -5, 2**63 - 1, -(2**63), "17", "a b ü"):
                self.assertEqual(getattr(self.parse(message(**{field: value})), field), value)

    def test_lists(self) -> None:
        """Interfaces and aliases are lists of texts; a text is not a list."""
        for field in ("interface", "alias"):
            base = {"node": "sensor1"}
            for bad in ("eth0", ["eth0", 5], ["eth0", ""], [None], [["eth0"]], {"eth0": 1}, ["e"] * 257):
                body = json.dumps({**base, field: bad}).encode()
                problem = self.problems(body)[field]
                self.assertTrue(problem.startswith("must be a list of up to 256 interface "), problem)

    def test_newer_keywords(self) -> None:
        """A word of a newer libpcap's language is called that, and not the name of a host."""
        for bpf, word in (
            ("ifindex 3", "ifindex"),
            ("icmp6[icmp6type] = icmp6-packettoobig", "icmp6-packettoobig"),
        ):
            with self.assertRaises(RequestRejected) as caught:
                self.parse(message(bpf=bpf))
            [problem] = caught.exception.problems
            rule = "can't be used: it needs a newer libpcap"
            self.assertEqual((problem.value, problem.rule), (f'"{word}"', rule))

    def test_interface_names(self) -> None:
        """A name that no device can have is rejected without looking for the device."""
        for name in ("eth0", "any", "br-0123456789ab", "eth0.100", "veth_é", "x" * 127):
            self.assertEqual(self.parse(message(interface=[name])).interface, (name,))
        for name in (".", "..", "a/b", "../x", "a b", "a:1", "a\x00", "a\n", "x" * 128, "a\x7f", "a\u2028b"):
            self.assertEqual(
                {
                    "interface": "must be a list of up to 256 interface names, each of 1 to 127 characters, "
                    "without spaces, slashes or colons"
                },
                self.problems(message(interface=[name])),
            )

    def test_folder(self) -> None:
        """A folder has no part that leads elsewhere."""
        for good in ("a", "a/b", "a/b/", "...", "a..b", ".hidden", "a/.b", "ü"):
            self.assertEqual(self.parse(message(folder=good)).options, {"s3": {"folder": good}})
        for bad in (".", "..", "../a", "a/..", "a/../b", "a/./b", "/..", "a\\b", "a\nb", "x" * 513):
            self.assertEqual(list(self.problems(message(folder=bad))), ["folder"], bad)

    def test_s3_fields(self) -> None:
        """Buckets, ACLs and regions are what S3 takes."""
        for acl in CANNED_ACLS:
            self.assertEqual(self.parse(message(acl=acl)).options, {"s3": {"acl": acl}})
        for field, bad in (
            ("acl", "Private"),
            ("acl", "private\n"),
            ("bucket", "ab"),
            ("bucket", "a/b/c"),
            ("bucket", "-abc"),
            ("bucket", "abc\n"),
            ("region", "us east"),
            ("region", "us-east-1\n"),
            ("region", "x" * 65),
            ("endpoint", "http://user:secret@host"),
            ("endpoint", "file:///etc/passwd"),
            ("endpoint", "host/path"),
        ):
            self.assertEqual(list(self.problems(message(**{field: bad}))), [field], (field, bad))

    def test_unknown_keys(self) -> None:
        """An unknown key is rejected, with the most similar name, even if its value is empty."""
        for value in ("udp", "", None, [], 0, {}):
            self.assertEqual(
                self.problems(message(bfp=value)),
                {"bfp": "is not a known key; did you mean 'bpf'?"},
                value,
            )
        self.assertEqual(self.problems(message(qqqqqq=5)), {"qqqqqq": "is not a known key"})
        self.assertEqual(self.problems(message(**{"": 5})), {'""': "is not a known key"})

    def test_unknown_keys_ignored(self) -> None:
        """They can be ignored by configuration; known keys are checked as always."""
        plain = self.parse(message())
        self.assertEqual(self.parse(message(bfp="udp", x=[1]), ignore_unknown=True), plain)
        self.assertEqual(list(self.problems(message(bfp="udp", snap=-1), ignore_unknown=True)), ["snap"])

    def test_unknown_key_on_one_line(self) -> None:
        """A key as long and as odd as can be makes one short line."""
        rejection = self.assertRaises(RequestRejected, self.parse, message(**{"a\n\x1b" + "x" * 5000: 1}))
        self.assertEqual(len(rejection.problems), 1)
        self.assertLess(len(str(rejection)), 200)
        self.assertTrue(str(rejection).isprintable())

    def test_all_problems_at_once(self) -> None:
        """Every problem is reported: kinds, limits, names, and what is missing."""
        body = json.dumps(
            {
                "node": "sensor1",
                "nodere": "x",
                "snap": "128",
                "packets": 50_001,
                "bytes": 10**9,
                "timeout": True,
                "duration": 3601,
                "bpf": "host a.example or host b.example",
                "folder": "..",
                "endpoint": "::",
                "bfp": "x",
            }
        ).encode()
        rejection = self.assertRaises(RequestRejected, self.parse, body)
        self.assertEqual(
            sorted(problem.path for problem in rejection.problems),
            sorted("node interface snap packets bytes timeout duration bpf bpf folder endpoint bfp".split()),
        )
        for problem in rejection.problems:
            self.assertIn(str(problem), str(rejection))

    def test_given_value_is_shown(self) -> None:
        """A problem shows the value, shortened."""
        rejection = self.assertRaises(RequestRejected, self.parse, message(region="x" * 5000))
        shown = rejection.problems[0].value
        assert shown is not None
        self.assertTrue(shown.startswith('"xxx'))
        self.assertLess(len(shown), 100)


class EitherTests(Requests, unittest.SynchronousTestCase):
    """Exactly one of two."""

    def test_none(self) -> None:
        """Neither of two is a problem, even if one is there and empty."""
        for body in (b"{}", b'{"node": "", "nodere": null, "interface": [], "alias": null}'):
            self.assertEqual(
                self.problems(body),
                {
                    "node": "exactly one of 'node' and 'nodere' must be given, but neither is",
                    "interface": "exactly one of 'interface' and 'alias' must be given, but neither is",
                },
            )

    def test_both(self) -> None:
        """So are both."""
        self.assertEqual(
            self.problems(message(nodere="x", alias=["y"])),
            {
                "node": "exactly one of 'node' and 'nodere' must be given, but both are",
                "interface": "exactly one of 'interface' and 'alias' must be given, but both are",
            },
        )

    def test_unknown_alias(self) -> None:
        """Aliases are rejected if none is known, with those that are; one known alias is enough."""
        body = json.dumps({"node": "any", "alias": ["dmz", "Uplink"]}).encode()
        rejection = self.assertRaises(RequestRejected, parse_request, body, BOUNDS)
        self.assertEqual(
            [str(problem) for problem in rejection.problems],
            ['alias = ["dmz", "Uplink"]: must name an alias of this node (it has: inside, uplink, y)'],
        )
        parse_request(b'{"node": "any", "alias": ["dmz", "uplink"]}', BOUNDS)

    def test_many_unknown_keys(self) -> None:
        """Of very many unknown keys, some are reported, and the others counted."""
        body = json.dumps({"node": "any", "interface": ["y"], **{f"k{at}": 1 for at in range(900)}}).encode()
        rejection = self.assertRaises(RequestRejected, parse_request, body, BOUNDS)
        *told, last = [str(problem) for problem in rejection.problems]
        self.assertEqual(len(told), 20)
        self.assertEqual(last, "request: has 880 more unknown keys")

    def test_asks_to_be_logged(self) -> None:
        """A message can ask to be logged even if it is invalid."""
        self.assertTrue(asks_to_be_logged(b'{"packets": 0, "logrequest": true}'))
        for body in (b"{}", b'{"logrequest": 1}', b'{"logrequest": false}'):
            self.assertFalse(asks_to_be_logged(body), body)

    def test_told_with_others(self) -> None:
        """Problems that were found before are reported with those found here."""
        before = Problem(path="nodere", rule="must be a regular expression")
        body = b'{"nodere": "(", "interface": ["eth0"], "packets": 0}'
        rejection = self.assertRaises(RequestRejected, parse_request, body, BOUNDS, found=[before])
        self.assertEqual([problem.path for problem in rejection.problems], ["nodere", "packets"])

    def test_wrong_is_not_missing(self) -> None:
        """A field that is wrong in itself, or misspelt, isn't called missing; another one is."""
        self.assertEqual(list(self.problems(message(interface="eth0"))), ["interface"])
        self.assertNotIn("none", self.problems(message(interface="eth0"))["interface"])
        self.assertEqual([*self.problems(b'{"node": "x", "interfaces": ["y"]}')], ["interfaces"])
        self.assertEqual([*self.problems(b'{"node": "x", "packts": 1}')], ["packts", "interface"])

    def test_node_of_a_wrong_kind(self) -> None:
        """A node that is an empty list doesn't count as "not given"."""
        self.assertIn("node", self.problems(b'{"node": [], "nodere": "x", "interface": ["eth0"]}'))


class FilterTests(Requests, unittest.SynchronousTestCase):
    """What is checked of a filter without libpcap."""

    def test_length(self) -> None:
        """A filter is bounded, and one that is too long isn't looked into."""
        longest = "host 192.0.2.1 ".ljust(512)
        self.assertEqual(self.parse(message(bpf=longest)).bpf, longest)
        self.assertEqual(
            self.problems(message(bpf="foo.example " * 50)),
            {"bpf": "must have up to 512 characters on this node, and has 600"},
        )

    def test_names(self) -> None:
        """A name that needs DNS is a problem of its own."""
        rejection = self.assertRaises(
            RequestRejected, self.parse, message(bpf="host foo.example and port http")
        )
        self.assertEqual(
            [(problem.path, problem.value) for problem in rejection.problems], [("bpf", '"foo.example"')]
        )

    def test_loop(self) -> None:
        """A filter that the kernel can't run is rejected because of its keyword."""
        self.assertEqual(
            self.problems(message(bpf="ip protochain 6")),
            {"bpf": "can't be used: the kernel can't run it"},
        )

    def test_control_characters(self) -> None:
        """White space may be tabs and newlines; no other control characters are accepted."""
        self.assertEqual(self.parse(message(bpf="tcp\n\tport 80")).bpf, "tcp\n\tport 80")
        self.assertEqual(self.parse(message(bpf="tcp\r\nport 80\r\n")).bpf, "tcp \nport 80 \n")
        for bad in ("tcp\x00", "tcp\x0b", "tcp\x1b", "tcp\x7f"):
            self.assertEqual(list(self.problems(message(bpf=bad))), ["bpf"], bad)


class OverridesTests(Requests, unittest.SynchronousTestCase):
    """What a request may say of S3."""

    def bounds(self, *allowed: str, endpoints: tuple[str, ...] = ()) -> RequestBounds:
        """Bounds with these overrides."""
        return RequestBounds(
            max_packets=1,
            max_bytes=1,
            max_timeout_seconds=1,
            max_duration_seconds=1,
            max_snap_length=1,
            max_filter_characters=1,
            options=(
                OptionFields(
                    destination="s3",
                    structure=S3Options,
                    check=partial(check_options, allowed=frozenset(allowed), endpoints=endpoints),
                ),
            ),
        )

    def test_not_allowed(self) -> None:
        """A field that may not be set is rejected, even C{false}, unless it is empty."""
        s3 = {field: FIELDS[field] for field in S3_FIELDS}
        self.assertEqual(set(self.problems(message(**s3), self.bounds())), set(S3_FIELDS))
        self.assertEqual(
            set(self.problems(message(**s3), self.bounds("bucket", "acl"))), {*S3_FIELDS} - {"bucket", "acl"}
        )
        self.assertIn("encryption", self.problems(message(encryption=False), self.bounds()))
        self.parse(message(bucket="", encryption=None), self.bounds())

    def test_endpoints(self) -> None:
        """An endpoint is compared with the list as a URL, whatever its spelling."""
        bounds = self.bounds("endpoint", endpoints=("https://s3.example", "http://minio:9000"))
        for good in ("s3.example", "https://s3.example/", "HTTPS://S3.Example", "http://minio:9000"):
            self.assertEqual(self.parse(message(endpoint=good), bounds).options["s3"]["endpoint"], good)
        for bad in ("http://s3.example", "s3.example.evil", "minio:9000", "s3.example:444"):
            self.assertEqual(
                self.problems(message(endpoint=bad), bounds),
                {"endpoint": "must be one of https://s3.example, http://minio:9000 on this node"},
                bad,
            )

    def test_no_s3_here(self) -> None:
        """If nothing is delivered to S3, only the types of its fields are checked."""
        bounds = RequestBounds(
            max_packets=1,
            max_bytes=1,
            max_timeout_seconds=1,
            max_duration_seconds=1,
            max_snap_length=1,
            max_filter_characters=1,
            options=(OptionFields(destination="s3", structure=S3Options),),
        )
        self.parse(message(bucket="other", endpoint="not/an endpoint"), bounds)
        self.assertEqual(list(self.problems(message(bucket=5), bounds)), ["bucket"])
