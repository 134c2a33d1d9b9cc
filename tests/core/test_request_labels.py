"""Keys in another case, and labels that can't be used as they are."""

from __future__ import annotations

import json
import re
import time

from twisted.trial import unittest

from pcapsvc.core.errors import RequestRejected
from pcapsvc.core.label_values import LABEL_CHARACTERS, usable_label
from pcapsvc.core.request import (
    CaptureRequest,
    asks_to_be_logged,
    parse_request,
    read_address,
    read_labels,
)
from tests.core.test_request import BOUNDS, FIELDS, Requests, message
from tests.cost import takes_less


class CaseTests(Requests, unittest.SynchronousTestCase):
    """Keys in another case."""

    def test_any_case(self) -> None:
        """Every field is known in any case, as Go knows it."""
        for spelled in (str.upper, str.title, lambda key: key.replace("k", "\u212a").replace("s", "\u017f")):
            for left_out in (("nodere", "alias"), ("node", "interface")):
                given = {key: value for key, value in FIELDS.items() if key not in left_out}
                body = json.dumps({spelled(key): value for key, value in given.items()}).encode()
                for ignore in (False, True):
                    self.assertEqual(
                        self.parse(body, ignore_unknown=ignore), self.parse(json.dumps(given).encode())
                    )

    def test_filter_is_never_ignored(self) -> None:
        """With unknown keys ignored, a C{BPF} still filters, or is refused."""
        self.assertEqual(self.parse(message(BPF="udp"), ignore_unknown=True).bpf, "udp")
        self.assertEqual(list(self.problems(message(BPF=5), ignore_unknown=True)), ["bpf"])

    def test_several(self) -> None:
        """Of one field in several cases the exact one counts, or else the last; not one that is empty."""
        for members, expected in (
            ('"bpf": "ip", "BPF": "tcp"', "ip"),
            ('"BPF": "tcp", "bpf": "ip"', "ip"),
            ('"BPF": "tcp", "Bpf": "udp"', "udp"),
            ('"bpf": "", "BPF": "tcp"', "tcp"),
            ('"BPF": "tcp", "bpf": null', "tcp"),
            ('"BPF": "tcp", "Bpf": ""', "tcp"),
            ('"bpf": "", "BPF": ""', None),
        ):
            body = f'{{"node": "sensor1", "interface": ["eth0"], {members}}}'.encode()
            self.assertEqual(self.parse(body, ignore_unknown=True).bpf, expected, members)

    def test_address(self) -> None:
        """So are the two fields that say whom a message is for, before anything else is read."""
        for body, expected in (
            (b'{"Node": "a"}', ("a", None)),
            (b'{"NODERE": "a"}', (None, "a")),
            (b'{"node": "", "NODE": "a"}', ("a", None)),
            (b'{"NODE": "a", "node": "b"}', ("b", None)),
            (b'{"\\u004eode": "a"}', ("a", None)),
            (b'{"nodes": "a"}', (None, None)),
        ):
            address = read_address(body)
            self.assertEqual((address.node, address.nodere), expected, body)

    def test_labels_and_logging(self) -> None:
        """So are those that are read from a message that is refused."""
        self.assertEqual(read_labels(b'{"RequestId": "r", "Tags": "t"}', "http").requestid, "r")
        self.assertTrue(asks_to_be_logged(b'{"LogRequest": true}'))


class LabelTests(Requests, unittest.SynchronousTestCase):
    """Labels describe a capture, and never cost it."""

    def warned(self, body: bytes) -> tuple[CaptureRequest, dict[str, str]]:
        """The request of a message, and the warnings about its labels."""
        request = self.parse(body)
        return request, {warning.path: warning.rule for warning in request.warnings}

    def test_good(self) -> None:
        """What can be used as it is stays as it is, without a warning."""
        for field, most in LABEL_CHARACTERS.items():
            for good in ("ü" * most, " a ", "\U0001f600", "\uffff"):
                request, warnings = self.warned(message(**{field: good}))
                self.assertEqual((getattr(request, field), warnings), (good, {}), field)

    def test_control_characters(self) -> None:
        """Line breaks and control characters become spaces."""
        for field in LABEL_CHARACTERS:
            for bad in ("\n", "\r\n", "\t", "\x00", "\x1b", "\x7f", "\x85", "\u2028", "\u202e"):
                request, warnings = self.warned(message(**{field: f"a{bad}b{bad}"}))
                self.assertEqual(getattr(request, field), "a b", (field, bad))
                self.assertIn("replaced by spaces", warnings[field])
            self.assertIsNone(getattr(self.warned(message(**{field: "\n"}))[0], field))

    def test_length(self) -> None:
        """What is too long is cut off; tags, between two of them."""
        for field, most in LABEL_CHARACTERS.items():
            request, warnings = self.warned(message(**{field: "x" * (most + 1)}))
            self.assertEqual(getattr(request, field), "x" * most)
            self.assertIn(f"at most {most} characters", warnings[field])
        request, _ = self.warned(message(tags="x" * 1000 + ",yy," + "z" * 1000))
        self.assertEqual(request.tags, "x" * 1000 + ",yy")

    def test_other_types(self) -> None:
        """Numbers and lists become text; what can't is left out."""
        for field, value, expected in (
            ("customer", 5, "5"),
            ("tags", ["a", "b", 3], "a,b,3"),
            ("tags", {"a": 1}, None),
            ("tags", [["a"]], None),
            ("requestid", True, None),
            ("alertid", 1.5, "1.5"),
            ("alertid", 2**63, str(2**63)),
            ("alertid", 10**300, "1" + "0" * 254),
            ("alertstr", False, None),
        ):
            request, warnings = self.warned(message(**{field: value}))
            self.assertEqual(getattr(request, field), expected, (field, value))
            self.assertEqual(list(warnings), [field])

    def test_latin_1(self) -> None:
        """A label that isn't UTF-8 is read as Windows-1252, which contains Latin-1."""
        for field in LABEL_CHARACTERS:
            body = message(**{field: "?"}).replace(b"?", "Müller \u20ac ü".encode("cp1252"))
            request, warnings = self.warned(body)
            self.assertEqual(getattr(request, field), "Müller \u20ac ü")
            self.assertEqual(warnings, {field: "is not UTF-8, and was read as Windows-1252"})
            self.assertEqual(read_address(body).node, "sensor1")

    def test_mixed(self) -> None:
        """What is UTF-8 in a label stays as it is, also beside what is not."""
        body = message(tags="?")
        latin, utf8 = b"\xe9t\xe9 ", "\xe9\u20ac\U0001f600".encode()
        request, _ = self.warned(body.replace(b"?", latin + utf8 + b"\x80\x81\xed"))
        self.assertEqual(request.tags, "\xe9t\xe9 \xe9\u20ac\U0001f600\u20ac\ufffd\xed")
        self.assertEqual(self.parse(body.replace(b"?", b"\xe9 " * 2000)).tags, "\xe9 " * 512)

    def test_surrogates(self) -> None:
        """Half of a surrogate pair in a label is replaced; a whole pair is a character."""
        body = message(tags="?").replace(b"?", rb"a\ud800b \ud83d\ude00 \\ud800 \udc00")
        request, warnings = self.warned(body)
        self.assertEqual(request.tags, "a\ufffdb \U0001f600 \\ud800 \ufffd")
        self.assertEqual(warnings, {"tags": "had half of a surrogate pair, which was replaced"})
        self.assertEqual(read_address(body).node, "sensor1")
        self.assertEqual(read_labels(body, "http").tags, request.tags)
        # However many there are.
        many = self.parse(message(tags="?").replace(b"?", rb"\ud800" * 10_000))
        self.assertEqual(many.tags, "\ufffd" * LABEL_CHARACTERS["tags"])
        # As SQS's texts are encoded.
        self.assertEqual(self.warned(body.replace(rb"\ud800b", b"\xed\xa0\x80b"))[0].tags, request.tags)

    def test_nesting(self) -> None:
        """However deeply a label is nested, it is left out, unless the message can't be decoded at all."""
        for depth in (2, 100, 2000, 5000):
            body = message(tags=5).replace(b"5", b"[" * depth + b"]" * depth)
            try:
                self.assertIsNone(self.parse(body).tags)
            except RequestRejected as rejection:
                self.assertIn("nested too deeply", str(rejection))

    def test_long_lists(self) -> None:
        """Of a list, as many items are read as may fit, so that its length costs next to nothing."""
        for items, tags in (
            (["a"] * 12_000, ",".join("a" * 512)),
            ([7] * 20_000, ",".join("7" * 512)),
            ([""] * 15_000, "," * 1023),
            (["a" * 500] * 100, f"{'a' * 500},{'a' * 500}"),
        ):
            request = self.parse(message(tags=items))
            self.assertEqual(request.tags, tags)
            self.assertIn("the rest", str(request.warnings))
        costs = [min(self.cost_of(["a"] * count) for _ in range(20)) for count in (1_100, 16_000)]
        self.assertLess(costs[1], 8 * costs[0])

    def cost_of(self, tags: list[str]) -> float:
        """How many seconds it takes to make a label of this."""
        began = time.thread_time()
        usable_label("tags", tags)
        return time.thread_time() - began

    def test_long_filter(self) -> None:
        """A filter of any length is checked for control characters sooner than by a choice for each."""
        choices = re.compile(r"\A(?:[^\x00-\x1f\x7f]|[\t\r\n])*\Z")
        for character in ("a", "\n", " "):
            bpf = character * 30_000
            body = message(bpf=bpf)
            ours, theirs = [], []
            for _ in range(10):
                began = time.thread_time()
                self.problems(body)
                ours.append(time.thread_time() - began)
                began = time.thread_time()
                choices.match(bpf)
                theirs.append(time.thread_time() - began)
            self.assertLess(min(ours), min(theirs))

    def test_what_is_captured_stays_strict(self) -> None:
        """Beside labels nothing is repaired: neither bytes, nor surrogates, nor control characters."""
        for field in ("node", "nodere", "bpf", "region", "bucket"):
            base = {"interface": ["eth0"], "tags": "a\nb", **({} if "node" in field else {"node": "any"})}
            for bad, rule in ((b"\xe9", "must be UTF-8"), (rb"\ud800", "surrogate"), (rb"\u0007", "must be")):
                body = json.dumps({**base, field: "?"}).encode().replace(b"?", bad)
                try:
                    read_address(body)
                    self.assertIn(rule, "".join(self.problems(body).values()), (field, bad))
                except RequestRejected as rejection:
                    self.assertIn(rule, str(rejection))
        self.assertIn("UTF-8", str(self.problems(message(interface=["?"]).replace(b"?", b"\xe9"))))

    def test_byte_order_mark(self) -> None:
        """A byte order mark before a message is named."""
        for mark, name in ((b"\xef\xbb\xbf", "EF BB BF"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16")):
            [rule] = self.problems(mark + message()).values()
            self.assertIn("byte order mark", rule)
            self.assertIn(name, rule)

    def test_cost(self) -> None:
        """However a body is broken, finding out why takes linear time."""
        for broken in (
            b"\\n" * 32_000,
            b"\\ud800" * 10_000,
            b"\\" * 65_000,
            b"\\ud83d" * 10_000,
            b"\\\\" * 32_000 + b"\\ud800",
            b"\x81" * 65_000,
            b"\xe9x" * 32_000,
            b"\xc3\xa9\x81" * 21_000,
            b"\xed\xa0\x80" * 21_000,
        ):
            body = message(tags="?").replace(b"?", broken)

            def parse(body: bytes = body) -> None:
                try:
                    parse_request(body, BOUNDS)
                except RequestRejected:
                    pass

            self.assertTrue(takes_less(0.04, parse), broken[:9])
