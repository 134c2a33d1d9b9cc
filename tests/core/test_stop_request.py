"""What a message that stops captures may say."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from twisted.trial import unittest

from pcapsvc.core.errors import RequestRejected
from pcapsvc.core.request import CaptureRequest, OptionFields, RequestBounds, StopRequest, parse_request
from tests.core.test_request import BOUNDS, FIELDS

TOGETHER = "can't be given together with 'stop'"


class StopTests(unittest.SynchronousTestCase):
    """L{parse_request}, of a message with C{stop}."""

    def parse(self, *, ignore_unknown: bool = False, **fields: Any) -> CaptureRequest | StopRequest:
        """The request of a message for a node."""
        body = json.dumps({"node": "sensor1", **fields}).encode()
        return parse_request(body, BOUNDS, ignore_unknown=ignore_unknown)

    def problems(self, **fields: Any) -> dict[str, str]:
        """The rule that is reported for each path."""
        rejection = self.assertRaises(RequestRejected, self.parse, **fields)
        return {problem.path: problem.rule for problem in rejection.problems}

    def test_stop(self) -> None:
        """It says for which nodes it is, and which request to stop; keys are matched in any case."""
        expected = StopRequest(node="sensor1", stop="r-1")
        self.assertEqual(self.parse(stop="r-1"), expected)
        self.assertEqual(self.parse(STOP="r-1"), expected)
        self.assertEqual(self.parse(node=None, NodeRE="^s", stop="r-1"), StopRequest(nodere="^s", stop="r-1"))
        self.assertEqual(self.parse(stop="x" * 128), StopRequest(node="sensor1", stop="x" * 128))

    def test_not_given(self) -> None:
        """Without a value it is a request to capture, as any other is."""
        for nothing in (None, ""):
            self.assertEqual(self.parse(stop=nothing, interface=["eth0"]), self.parse(interface=["eth0"]))
            problems = self.problems(stop=nothing)
            self.assertEqual(list(problems), ["stop", "interface"])
            self.assertEqual(problems["stop"], "is not given, so this is a request to capture")
        self.assertEqual(list(self.problems()), ["interface"])
        self.assertEqual(list(self.problems(stop="", snap="x", interface=["eth0"])), ["snap"])

    def test_not_text(self) -> None:
        """It must be one line of text of 1 to 128 characters."""
        rule = "must be the requestid of a request: one line of text of 1 to 128 characters"
        for value in (5, 0, True, ["r-1"], [], {}, "x" * 129, "a\nb", "a\u2028b", 10**400):
            self.assertEqual(self.problems(stop=value), {"stop": rule}, value)

    def test_beside_others(self) -> None:
        """Every other field is rejected by its name, and all of them at once; those not given are not."""
        others = {name: value for name, value in FIELDS.items() if name not in ("node", "nodere")}
        self.assertEqual(self.problems(stop="r-1", **others), dict.fromkeys(others, TOGETHER))
        self.assertEqual(
            self.problems(stop="r-1", BPF="x", Customer="y"), {"bpf": TOGETHER, "customer": TOGETHER}
        )
        self.assertEqual(
            self.parse(stop="r-1", interface=[], bpf="", packets=None, customer=""),
            StopRequest(node="sensor1", stop="r-1"),
        )

    def test_address(self) -> None:
        """It needs exactly one of C{node} and C{nodere}."""
        self.assertEqual(list(self.problems(stop="r-1", node=None)), ["node"])
        self.assertEqual(list(self.problems(stop="r-1", nodere="^s")), ["node"])

    def test_unknown_keys(self) -> None:
        """An unknown key is rejected, unless the node ignores it. A field of other requests always is."""
        self.assertEqual(
            self.problems(stop="r-1", x=1, nod="y"),
            {"x": "is not a known key", "nod": "is not a known key; did you mean 'node'?"},
        )
        self.assertEqual(
            self.parse(stop="r-1", x=1, ignore_unknown=True), StopRequest(node="sensor1", stop="r-1")
        )
        self.assertEqual(self.problems(stop="r-1", x=1, bpf="udp", ignore_unknown=True), {"bpf": TOGETHER})

    def test_misspelt(self) -> None:
        """A misspelt C{stop} gets a hint."""
        self.assertIn("did you mean 'stop'?", self.problems(stpo="r-1", interface=["eth0"])["stpo"])

    def test_destination_that_wants_it(self) -> None:
        """No destination may have an option of this name."""
        structure = msgspec.defstruct("Options", [("stop", str | None, None)])
        options = (OptionFields(destination="x", structure=structure),)
        bounds = {name: getattr(BOUNDS, name) for name in BOUNDS.__struct_fields__}
        self.assertRaises(TypeError, RequestBounds, **{**bounds, "options": options})
