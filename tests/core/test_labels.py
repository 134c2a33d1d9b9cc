"""What events repeat of a request."""

from __future__ import annotations

import json
import sys
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial import unittest

from pcapsvc.core.labels import Labels
from pcapsvc.core.plan import plan_captures
from pcapsvc.core.request import MAX_BODY_BYTES, CaptureRequest, read_labels
from tests.core.test_plan import NODE

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

    def test_wrong(self) -> None:
        """A label that is invalid is left out, alone."""
        for name, wrong in (("requestid", "x" * 129), ("alertid", [1]), ("customer", 5), ("tags", "a\nb")):
            for bad in (wrong, None, "", 1e400):
                body = json.dumps({**GIVEN, name: bad}).replace("Infinity", "1" * 5000).encode()
                self.assertEqual(
                    read_labels(body, "redis"), Labels(via="redis", **{**GIVEN, name: None}), bad
                )

    def test_no_request(self) -> None:
        """What is no request at all has no labels, and never raises."""
        deep = b'{"customer": "x", "requestid": ' + b"[" * sys.getrecursionlimit() * 20
        for body in (b"", b"[]", b"\xff", b'"x"', b" " * (MAX_BODY_BYTES + 1), deep, b'{"tags": "\\ud800"}'):
            self.assertEqual(read_labels(body, "redis"), Labels(via="redis"))


class PlanTests(unittest.SynchronousTestCase):
    """The labels of captures."""

    def test_each_interface(self) -> None:
        """The captures of a request have its labels, and their own interfaces."""
        request = CaptureRequest(node="sensor1", interface=("eth0", "eth1"), **GIVEN)
        self.assertEqual(
            [plan.labels for plan in plan_captures(request, NODE, "sqs")],
            [Labels(via="sqs", interface=name, **GIVEN) for name in ("eth0", "eth1")],
        )
