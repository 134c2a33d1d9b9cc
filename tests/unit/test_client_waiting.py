"""How long pcapctl waits."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

from twisted.trial import unittest

from pcapsvc.client import tally as client_tally
from pcapsvc.client import waiting as client_waiting
from pcapsvc.client.address import read_address
from pcapsvc.client.main import parser
from pcapsvc.client.requesting import ANSWER_SECONDS, node_address, patience_of
from pcapsvc.client.status import ClientError, ExitStatus
from pcapsvc.client.table import TableView
from pcapsvc.client.tally import SILENT_SECONDS, Tally
from pcapsvc.client.views import JsonView, LineView
from pcapsvc.client.waiting import NoFiles, Patience, Waiting
from pcapsvc.core.history import Missing, MissingReason, PastPackets
from tests.unit import client_case as case
from tests.unit.client_case import REQUEST, MemoryEvents


class LateFiles(NoFiles):
    """Files whose place is known at the end only, whether all is well then or not."""

    def __init__(self, tally: Tally, problem: ClientError | None) -> None:
        self._tally = tally
        self._problem = problem

    def finish(self) -> None:
        """Now it is known."""
        for row in self._tally.rows:
            row.fetched = "all.pcap"
        if self._problem is not None:
            raise self._problem


class WaitingTests(unittest.SynchronousTestCase):
    """When it ends, and with which status."""

    def wait(
        self,
        *script: tuple[float, Any],
        expect: int | None = None,
        answers: float = 5.0,
        deadline: float | None = None,
    ) -> tuple[ExitStatus, int]:
        """Wait for what is in the script. The status, and how many seconds it took, about."""
        events = MemoryEvents(*script)
        self.output = io.StringIO()
        patience = Patience(expect=expect, answer_seconds=answers, deadline_seconds=deadline)
        waiting = Waiting(Tally(REQUEST), events, LineView(self.output), NoFiles(), patience, events.clock)
        return waiting.run(), round(events.now)

    def at(self, seconds: float, events: list[dict[str, Any]]) -> list[tuple[float, Any]]:
        """These events, all at the same time."""
        return [(seconds, event) for event in events]

    def test_expected(self) -> None:
        """If the number of nodes is known, it ends with the last one."""
        script = [*self.at(1.0, case.whole("web-1", "a")), *self.at(9.0, case.whole("web-2", "b"))]
        self.assertEqual(self.wait(*script, expect=2, answers=60.0), (ExitStatus.DELIVERED, 9))

    def test_unknown(self) -> None:
        """Otherwise it waits for answers for a while, and for those who answered as long as they take."""
        first, second = case.whole("web-1", "a"), case.whole("web-2", "b")
        self.assertEqual(self.wait(*self.at(1.0, first)), (ExitStatus.DELIVERED, 5))
        script = [*self.at(1.0, first), *self.at(4.0, second[:2]), *self.at(30.0, second[2:])]
        self.assertEqual(self.wait(*script), (ExitStatus.DELIVERED, 30))

    def test_missing(self) -> None:
        """One that is expected, and doesn't answer in time, is missing."""
        script = self.at(1.0, case.whole("web-1", "a"))
        self.assertEqual(self.wait(*script, expect=2, answers=60.0), (ExitStatus.PARTLY, 60))

    def test_nobody(self) -> None:
        """Nobody answers."""
        self.assertEqual(self.wait(), (ExitStatus.NO_ANSWER, 5))

    def test_too_many(self) -> None:
        """Captures that are too many are ignored, which is said once, and how many in the end."""
        for module in (client_tally, client_waiting):
            self.patch(module, "MOST_ROWS", 1)
        errors = io.StringIO()
        self.patch(sys, "stderr", errors)
        script = [
            *self.at(1.0, case.whole("web-1", "a")),
            *self.at(0.5, [case.busy("x"), case.busy("y"), case.busy("z")]),
        ]
        self.wait(*script, answers=2.0)
        self.assertEqual(
            errors.getvalue(),
            "pcapctl: more than 1 captures, or too many destinations: others are ignored\n"
            "pcapctl: ignored in all: 7 events of further captures or destinations\n",
        )

    def test_deadline(self) -> None:
        """The deadline ends it, whatever is still running."""
        script = self.at(1.0, case.whole("web-1", "a")[:2])
        self.assertEqual(self.wait(*script, answers=20.0, deadline=20.0), (ExitStatus.PARTLY, 20))

    def test_long_deadline(self) -> None:
        """If the number of nodes is unknown, answers take no longer because the deadline is far away."""
        via = [read_address("redis://h")]
        for words, expect, seconds in (
            (("--nodere", "^web"), None, ANSWER_SECONDS),
            (("--nodere", "^web", "--expect", "2"), 2, 600.0),
            (("--node", "web-1"), 1, 600.0),
        ):
            options = parser().parse_args(["capture", "--deadline", "600", *words])
            patience = patience_of(options, node_address(options), via, 5)
            expected = Patience(expect=expect, answer_seconds=seconds, deadline_seconds=600.0)
            self.assertEqual(patience, expected, words)

    def test_killed(self) -> None:
        """A node that falls silent is not waited for any longer."""
        script = [
            *self.at(1.0, case.whole("web-1", "a")),
            (1.0, case.accepted("web-2", "b")),
            (1.0, case.started("web-2", "b")),
            (2.0, case.progress("web-2", "b", 1, 1.0)),
        ]
        status, seconds = self.wait(*script)
        self.assertEqual(status, ExitStatus.PARTLY)
        self.assertEqual(seconds, 2 + SILENT_SECONDS)
        self.assertIn("web-2:eth0 silent", self.output.getvalue())

    def test_lines(self) -> None:
        """Each event is a line, and each outcome at the end; what a node says can't control the terminal."""
        hostile = case.event("web-2", case.RequestBusy(reason="\x1b[2J\u202ebusy"))
        self.wait(*self.at(1.0, [*case.whole("web-1", "a"), hostile]))
        lines = self.output.getvalue().splitlines()
        self.assertEqual(
            lines,
            [
                "22:13:20.000 web-1 accepted: a on eth0",
                "22:13:20.000 web-1:eth0 a capturing udp, up to 100 packets, 10.0 kB, 1:00, 20 s idle",
                "22:13:20.000 web-1:eth0 a stopped (packets): 100 packets, 124 B",
                "22:13:20.000 web-1:eth0 a delivered to local: /captures/a.pcap",
                "22:13:20.000 web-1:eth0 a done",
                "22:13:20.000 web-2 busy: [2J busy",
                "web-1:eth0 delivered 100 packets, 124 B: /captures/a.pcap",
                "web-2 busy: [2J busy",
            ],
        )

    def test_files(self) -> None:
        """The outcomes are shown once the files are finished, and also if they can't be."""
        for problem in (None, ClientError("can't be merged")):
            events = MemoryEvents(*self.at(1.0, case.whole("web-1", "a")))
            output, tally = io.StringIO(), Tally(REQUEST)
            patience = Patience(expect=1, answer_seconds=5.0, deadline_seconds=None)
            files = LateFiles(tally, problem)
            waiting = Waiting(tally, events, LineView(output), files, patience, events.clock)
            if problem is None:
                self.assertEqual(waiting.run(), ExitStatus.DELIVERED)
            else:
                self.assertRaises(ClientError, waiting.run)
            outcome = "web-1:eth0 delivered 100 packets, 124 B: all.pcap; /captures/a.pcap"
            self.assertEqual(output.getvalue().splitlines()[5:], [outcome])

    def test_past_missing(self) -> None:
        """What is missing of the past is said when the capture starts, and with its outcome."""
        past = PastPackets(
            seconds=600,
            packets=3,
            missing=(
                Missing(reason=MissingReason.STARTED, seconds=596.2),
                Missing(reason=MissingReason.DROPS, seconds=0.5, packets=7),
                Missing(reason=MissingReason.SNAP),
            ),
        )
        self.wait(*self.at(1.0, case.whole("web-1", "a", past)))
        lines = self.output.getvalue().splitlines()
        words = (
            "missing of the past: 9:56 (recording began later), 0.5 s, 7 packets (dropped by the kernel),"
            " packets may be cut"
        )
        self.assertTrue(lines[1].endswith(f", 20 s idle; {words}"), lines[1])
        self.assertEqual(lines[-2:], [lines[-2], f"web-1:eth0 {words}"])
        self.assertIn("delivered 100 packets", lines[-2])
        stream = io.StringIO()
        TableView(stream).close(case.tally(*case.whole("web-1", "a", past)), 0.0)
        self.assertEqual(stream.getvalue().splitlines()[-1], f"web-1:eth0: {words}")

    def test_whole_past(self) -> None:
        """Nothing is said if nothing is missing."""
        self.wait(*self.at(1.0, case.whole("web-1", "a", PastPackets(seconds=30, packets=3))))
        self.assertNotIn("missing", self.output.getvalue())

    def test_hostile_past(self) -> None:
        """Whatever an event says of the past, the capture goes on, and the terminal isn't controlled."""
        for history in (5, {}, {"missing": 5}, {"missing": [5]}, {"missing": [{"reason": "\x1b[2J"}]}):
            events = case.whole("web-1", "a")
            for event in events:
                if event["type"].startswith("pcapsvc.capture.st"):
                    event["data"]["history"] = history
            self.assertEqual(self.wait(*self.at(1.0, events))[0], ExitStatus.DELIVERED)
            self.assertNotIn("\x1b", self.output.getvalue())

    def test_no_answers(self) -> None:
        """If nobody has answered, nothing at the end says that answers are waited for."""
        stream = io.StringIO()
        TableView(stream).close(case.tally(), 0.0)
        self.assertEqual(stream.getvalue(), "")

    def test_hostile_notes(self) -> None:
        """What else is said can't control the terminal either."""
        errors = io.StringIO()
        self.patch(sys, "stderr", errors)
        for view in (LineView(io.StringIO()), JsonView(io.StringIO())):
            view.note("not on \x1b[2Jweb-1")
        stream = io.StringIO()
        TableView(stream).note("not on \x1b[2Jweb-1")
        self.assertEqual(errors.getvalue(), "pcapctl: not on [2Jweb-1\n" * 2)
        self.assertEqual(stream.getvalue(), "not on [2Jweb-1\n")

    def test_json(self) -> None:
        """The events themselves, one on each line."""
        stream = io.StringIO()
        view = JsonView(stream)
        event = case.busy("web-1")
        view.event(event)
        view.close(Tally(REQUEST), 0.0)
        self.assertEqual([json.loads(line) for line in stream.getvalue().splitlines()], [event])
