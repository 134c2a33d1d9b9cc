"""The age of requests, in the flow: one that is too old is refused before anything is opened for it."""

from __future__ import annotations

import json
from typing import Any

from twisted.logger import LogLevel

from pcapsvc.core.event import RequestRejected
from pcapsvc.core.message import Message
from pcapsvc.core.result import Accepted, NotForThisNode, Rejected, Verdict
from tests.unit.pipeline_case import PipelineCase

NOW = 1_700_000_000.0


class RequestAgeTests(PipelineCase):
    """With a maximum age of a minute."""

    options = {"wall_clock": lambda: NOW, "max_request_age_seconds": 60}

    def sent(self, age_seconds: float | None, **fields: Any) -> Verdict:
        """Submit what a broker took so long ago; L{None} where it doesn't say."""
        body = json.dumps({"node": "sensor1", "interface": ["mem0"], **fields}).encode()
        sent_at = None if age_seconds is None else NOW - age_seconds
        return self.judge(Message(source="test", body=body, sent_at=sent_at))

    def test_too_old(self) -> None:
        """It is refused with one warning, and nothing is opened for it."""
        verdict = self.sent(3600)
        assert isinstance(verdict, Rejected), verdict
        self.assertEqual(
            ["was sent 3600 s ago, and must be at most 60 s old on this node"], self.rules(verdict)
        )
        self.assertEqual(1, len(self.events(RequestRejected)))
        ((level, line),) = self.lines
        self.assertEqual(LogLevel.warn, level)
        self.assertIn("was sent 3600 s ago", line)
        self.assertEqual(self.system.open_handles, 0)

    def rules(self, verdict: Rejected) -> list[str]:
        """What a request breaks."""
        return [problem.rule for problem in verdict.problems]

    def test_young_enough(self) -> None:
        """A minute, five seconds between the clocks, a clock that is ahead: all of these are taken."""
        for age_seconds in (0, 60, 65, -3600):
            verdict = self.sent(age_seconds)
            self.assertIsInstance(verdict, Accepted, age_seconds)
        self.stop()

    def test_no_age(self) -> None:
        """If the broker gives no time, the age is unknown."""
        self.assertIsInstance(self.sent(None), Accepted)
        self.stop()

    def test_for_others(self) -> None:
        """An old one for another node is no business of ours, and isn't told."""
        self.assertIsInstance(self.sent(3600, node="other"), NotForThisNode)
        self.assertEqual([], self.lines)

    def test_broken(self) -> None:
        """Of an old one nothing else is looked at."""
        verdict = self.sent(3600, packets=-1)
        assert isinstance(verdict, Rejected), verdict
        self.assertEqual(1, len(verdict.problems))


class AnyAgeTests(PipelineCase):
    """Without a maximum age."""

    options = {"wall_clock": lambda: NOW, "max_request_age_seconds": None}

    def test_old(self) -> None:
        """A year is not too much."""
        body = b'{"node": "sensor1", "interface": ["mem0"]}'
        self.assertIsInstance(
            self.judge(Message(source="test", body=body, sent_at=NOW - 31_557_600)), Accepted
        )
        self.stop()
