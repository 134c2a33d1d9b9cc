"""What events repeat of a request."""

from __future__ import annotations

import json
import sys
from typing import Any

from twisted.trial import unittest

from pcapsvc.core.labels import Labels
from pcapsvc.core.plan import plan_captures
from pcapsvc.core.request import MAX_BODY_BYTES, CaptureRequest, parse_request, read_labels
from tests.core.test_plan import NODE
from tests.core.test_request import BOUNDS
from tests.examples import given
from tests.examples import strategies as st

GIVEN: dict[str, Any] = {"requestid": "r-1", "alertid": 17, "customer": "ACME", "tags": "one,two"}
_json = st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text()) | st.floats()


class MappingTests(unittest.SynchronousTestCase):
    """Labels as JSON."""

    def test_round_trip(self) -> None:
        """What JSON keeps of labels makes the same labels; those that are absent are left out."""
        for labels in (
            Labels(via="http", interface="eth0", **GIVEN),
            Labels(via="http", alertid="A-17"),
            Labels(via=None),
        ):
            mapping = labels.as_mapping()
            self.assertNotIn(None, mapping.values())
            self.assertEqual(Labels.from_mapping(json.loads(json.dumps(mapping))), labels)

    @given(st.dictionaries(st.text() | st.sampled_from(["via", *GIVEN, "interface"]), _json))
    def test_anything(self, mapping: dict[str, Any]) -> None:
        """Whatever a mapping holds, it makes labels: what is no label is ignored."""
        labels = Labels.from_mapping(mapping)
        for name, value in labels.as_mapping().items():
            self.assertIs(value, mapping[name])
            self.assertIn(type(value), (int, str) if name == "alertid" else (str,))


class ReadTests(unittest.SynchronousTestCase):
    """The labels of messages, valid or not."""

    def test_given(self) -> None:
        """Labels are read though the rest of the message is invalid."""
        body = json.dumps({**GIVEN, "packets": "x", "nosuch": [1]}).encode()
        self.assertEqual(read_labels(body, "redis"), Labels(via="redis", **GIVEN))

    def test_same_as_request(self) -> None:
        """A label is read as the request has it."""
        values: list[Any] = [
            0,
            1,
            -(2**63),
            2**63,
            1.0,
            1.5,
            True,
            "",
            "0",
            "é",
            "a\tb",
            "\u2028",
            [],
            {},
            None,
        ]
        values += ["x" * length for length in (128, 129, 255, 256, 1024, 1025)]
        for name in GIVEN:
            for value in values:
                body = json.dumps({"node": "sensor1", "interface": ["eth0"], name: value}).encode()
                expected = getattr(parse_request(body, BOUNDS), name)
                found = getattr(read_labels(body, "redis"), name)
                self.assertEqual((type(found), found), (type(expected), expected), f"{name} {value!r}")

    def test_wrong(self) -> None:
        """A label that can't be used is left out, alone."""
        for name in GIVEN:
            for bad in ({}, [[1]], True, None, ""):
                body = json.dumps({**GIVEN, name: bad}).encode()
                self.assertEqual(
                    read_labels(body, "redis"), Labels(via="redis", **{**GIVEN, name: None}), bad
                )

    def test_no_request(self) -> None:
        """What is no request at all has no labels, and never raises."""
        deep = b'{"customer": "x", "requestid": ' + b"[" * sys.getrecursionlimit() * 20
        for body in (b"", b"[]", b"\xff", b'"x"', b" " * (MAX_BODY_BYTES + 1), deep):
            self.assertEqual(read_labels(body, "redis"), Labels(via="redis"))


class PlanTests(unittest.SynchronousTestCase):
    """The labels of captures."""

    def test_each_interface(self) -> None:
        """The captures of a request have its labels, and their own interfaces."""
        request = CaptureRequest(node="sensor1", interface=("eth0", "eth1"), **GIVEN)
        self.assertEqual(
            [plan.labels for plan in plan_captures(request, NODE, "sqs", now=0.0)],
            [Labels(via="sqs", interface=name, **GIVEN) for name in ("eth0", "eth1")],
        )
