"""Bodies that are not requests, and hostile ones."""

from __future__ import annotations

import json
import sys
from typing import Any

from twisted.trial import unittest

from pcapsvc.core.errors import RequestRejected
from pcapsvc.core.request import (
    MAX_BODY_BYTES,
    CaptureRequest,
    parse_request,
    read_address,
)
from tests.core.test_request import BOUNDS, EITHER, FIELDS, Requests, message
from tests.examples import given, settings
from tests.examples import strategies as st


class BodyTests(Requests, unittest.SynchronousTestCase):
    """Bodies that are no requests."""

    def test_too_many_keys(self) -> None:
        """More keys than any request has are not looked at: of 64 KiB of them, that would take 15 ms."""
        body = json.dumps({"node": "any", **{f"k{at}": 1 for at in range(4000)}}).encode()
        for ignored in (False, True):
            self.assertEqual(
                {"request": "must have up to 1000 keys, and has 4001"},
                self.problems(body, ignore_unknown=ignored),
            )

    def test_no_object(self) -> None:
        """Anything but a JSON object is rejected, and the message says so."""
        good = message()
        for body in (
            b"",
            b" ",
            b"null",
            b"[]",
            b"5",
            b'"x"',
            b"{",
            good + b" x",
            good * 2,
            good[:-1],
            good.replace(b"}", b', "snap": NaN}'),
            good.replace(b"}", b', "snap": Infinity}'),
            good.replace(b"}", b",}"),
            good.replace(b'"node"', b"'node'"),
            b"/**/" + good,
        ):
            self.assertEqual(list(self.problems(body)), ["request"], body)
            self.assertIn("must be a JSON object", self.problems(body)["request"])

    def test_not_json(self) -> None:
        """What is not JSON at all is told from JSON that is not an object, and from an incomplete object."""
        for body, found in (
            (b"", "is empty"),
            (b" \n", "is empty"),
            (b"foo", "is not JSON"),
            (b"node=any", "is not JSON"),
            (b"{node: 1}", "is not valid JSON: object keys must be strings (byte 1)"),
            (b'{"node": "any"', "is incomplete"),
            (b"[", "is not an object"),
            (b"[]", "is not an object"),
            (b"null", "is not an object"),
        ):
            self.assertEqual(self.problems(body), {"request": f"must be a JSON object, but {found}"}, body)

    def test_size(self) -> None:
        """A body of 64 KiB is read, and a longer one is not."""
        good = message()
        self.parse(good + b" " * (MAX_BODY_BYTES - len(good)))
        self.assertEqual(
            self.problems(good + b" " * (MAX_BODY_BYTES - len(good) + 1)),
            {"request": "must have up to 65536 bytes, and has 65537"},
        )

    def test_encoding(self) -> None:
        """Bytes that are not UTF-8, and lone surrogates, are rejected except in labels."""
        for body in (
            b"\xff\xfe{}",
            message().replace(b"sensor1", b"\xff"),
            message(region="x").replace(b'"x"', b'"\xc3"'),
            message(region="x").replace(b'"x"', b'"\xed\xa0\x80"'),
            message(region="x").replace(b'"x"', b'"\\ud800"'),
            message(region="x").replace(b'"x"', b'"\\udc00"'),
            message(xx=1).replace(b"xx", b"\xff"),
            message().decode().encode("utf-16"),
        ):
            self.assertEqual(list(self.problems(body)), ["request"], body)

    def test_half_a_character(self) -> None:
        """Half of a surrogate pair is reported as such, and as it was written."""
        for text, told in (
            (rb"\ud800", r"\ud800"),
            (rb"a\\\uDBFFb", r"\uDBFF"),
            (rb"\udc00", r"\udc00"),
            (rb"\ud83d\ude00\ud83d\u0041", r"\ud83d"),
        ):
            for body in (
                message(region="x").replace(b'"x"', b'"' + text + b'"'),
                message(bpf="x", packets=1).replace(b'"x"', b'"' + text + b'"'),
            ):
                rules = self.problems(body)
                self.assertEqual(
                    {"request": f"must be Unicode, and has half of a surrogate pair: {told}"}, rules, body
                )
        # The backslash is escaped, and what follows it isn't an escape sequence.
        self.assertEqual(self.parse(message(tags=r"\ud800")).tags, r"\ud800")
        self.assertIn("must be a JSON object", self.problems(message(tags=r"\ud800")[:-1])["request"])

    def test_numbers_out_of_range(self) -> None:
        """A number that is too large to be represented is a problem of its field, like any other."""
        nines = b"9" * 5000
        body = message(bytes=7, packets=0, interface=[8], snap=6).replace(b": 7", b": " + nines)
        body = body.replace(b"[8]", b"[\n" + nines + b"]").replace(b": 6", b": 1e999")
        rejection = self.assertRaises(RequestRejected, parse_request, body, BOUNDS)
        problems = {problem.path: problem for problem in rejection.problems}
        self.assertEqual({"bytes", "packets", "interface", "snap"}, set(problems))
        self.assertEqual("9" * 80 + "…", problems["bytes"].value)
        self.assertEqual(f"must be at most {BOUNDS.max_bytes} on this node", problems["bytes"].rule)
        for number, rule in (
            (b"-" + nines, "a whole number, 1 or more"),
            (nines + b".5", "a whole number, 1 or more"),
        ):
            self.assertIn(rule, self.problems(message(bytes=7).replace(b": 7", b": " + number))["bytes"])
        self.assertEqual(r"[\n" + "9" * 77 + "…", problems["interface"].value)
        self.assertEqual("1e999", problems["snap"].value)
        self.assertEqual(["alertld"], list(self.problems(message(alertld=7).replace(b": 7", b": " + nines))))

    def test_escapes(self) -> None:
        """A pair of surrogates is a character, and an escaped key is its key."""
        body = b'{"no\\u0064e": "sensor1", "interface": ["eth0"], "customer": "\\ud83d\\ude00"}'
        self.assertEqual(self.parse(body).customer, "\N{GRINNING FACE}")
        self.assertEqual(read_address(body).node, "sensor1")

    def test_duplicate_keys(self) -> None:
        """Of two equal keys the last one counts, for the address as for the request."""
        body = b'{"node": "other", "interface": ["eth0"], "node": "sensor1"}'
        self.assertEqual((read_address(body).node, self.parse(body).node), ("sensor1", "sensor1"))

    def test_nesting(self) -> None:
        """However deeply a value is nested, and whatever its key, the request is simply rejected."""
        depths = [*range(2, 40), *range(900, sys.getrecursionlimit() + 10), 5000, 30_000]
        for key in (b"x", b"packets", b"node", b"interface", b"bpf", b"region"):
            for opening, inner, closing in ((b"[", b"1", b"]"), (b'{"":', b"1", b"}")):
                for depth in depths:
                    if (len(opening) + len(closing)) * depth > MAX_BODY_BYTES - 100:
                        continue
                    value = opening * depth + inner + closing * depth
                    body = b'{"node": "sensor1", "interface": ["eth0"], "' + key + b'":' + value + b"}"
                    self.assertTrue(self.problems(body), (key, depth))

    def test_nesting_in_the_address(self) -> None:
        """The address of a body that is nested too deeply anywhere can't be read either."""
        for key in (b"x", b"node"):
            self.assertRaises(
                RequestRejected, read_address, b'{"node":"other","' + key + b'":' + b"[" * 60_000 + b"}"
            )


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


class HostileTests(unittest.SynchronousTestCase):
    """Whatever the input is, it is a request or it is rejected."""

    def outcome(self, body: bytes, **options: bool) -> CaptureRequest | None:
        """The request; L{None} if it was rejected, with a problem that can be shown."""
        try:
            return parse_request(body, BOUNDS, **options)
        except RequestRejected as rejection:
            self.assertTrue(rejection.problems)
            self.assertTrue(all(problem.path and problem.rule for problem in rejection.problems))
            str(rejection).encode()
            return None

    @settings(max_examples=300, deadline=None)
    @given(st.binary(max_size=200))
    def test_bytes(self, body: bytes) -> None:
        """Random bytes are rejected."""
        self.assertIsNone(self.outcome(body))

    @settings(max_examples=150, deadline=None)
    @given(st.dictionaries(st.sampled_from([*FIELDS, "bfp", "Node", ""]), _values), st.booleans())
    def test_json(self, fields: dict[str, Any], ignore: bool) -> None:
        """Random values of known fields, and of others: what is accepted is within the limits."""
        request = self.outcome(json.dumps(fields).encode(), ignore_unknown=ignore)
        if request is None:
            return
        self.assertNotEqual(request.node is None, request.nodere is None)
        self.assertNotEqual(request.interface is None, request.alias is None)
        for field, most in (("packets", 50_000), ("snap", 262_144), ("timeout", 300), ("duration", 3600)):
            value = getattr(request, field)
            self.assertTrue(value is None or (type(value) is int and 1 <= value <= most), (field, value))

    @settings(max_examples=300, deadline=None)
    @given(st.data())
    def test_mutated(self, data: st.DataObject) -> None:
        """A good message with bytes changed, removed or inserted."""
        given_fields = {key: value for key, value in FIELDS.items() if key not in EITHER}
        body = bytearray(json.dumps(given_fields).encode())
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(body) - 1))
            until = data.draw(st.integers(at, min(len(body), at + 3)))
            body[at:until] = data.draw(st.binary(max_size=3))
        self.outcome(bytes(body))
