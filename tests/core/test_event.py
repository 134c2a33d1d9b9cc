"""Events, as CloudEvents."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial import unittest

from pcapsvc.core.errors import Problem
from pcapsvc.core.event import (
    CaptureDelivered,
    CaptureDone,
    CaptureFailed,
    CaptureFile,
    CaptureProgress,
    CaptureStarted,
    CaptureStopped,
    DeliveryFailed,
    DeliveryPostponed,
    DeliverySpooled,
    Event,
    EventFactory,
    Payload,
    ReportsDropped,
    RequestAccepted,
    RequestBusy,
    RequestRejected,
    as_json,
    verdict_payload,
)
from pcapsvc.core.history import Missing, MissingReason, PastPackets
from pcapsvc.core.labels import Labels
from pcapsvc.core.mask import of_process
from pcapsvc.core.recording import PacketCounts, Progress
from pcapsvc.core.result import Accepted, Busy, Rejected, StartedCapture
from pcapsvc.core.session import CaptureLimits, StopReason
from pcapsvc.testing import event_factory
from tests.examples import given
from tests.examples import strategies as st
from tests.unit.event_schema import check, problems, schema

REQUEST = Labels(via="http", requestid="r-1", alertid=7, customer="ACME", tags="one,two")
CAPTURE = Labels(via="http", requestid="r-1", alertid="A-7", interface="eth0")
LIMITS = CaptureLimits(max_packets=10, max_bytes=1000, idle_seconds=5, duration_seconds=60)
PROBLEMS = (
    Problem(path="packets", value="0", rule="must be a whole number, 1 or more"),
    Problem(path="request", rule="must be UTF-8"),
)
NO_PAST = PastPackets(seconds=30, missing=(Missing(reason=MissingReason.NONE),))
SOME_PAST = PastPackets(
    seconds=30.5,
    first=1_700_000_000.75,
    packets=3,
    missing=(
        Missing(reason=MissingReason.STARTED, seconds=2.50004),
        Missing(reason=MissingReason.DROPS, packets=7),
    ),
)
#: Each type, with the data that its JSON has beside the labels.
PAYLOADS: list[tuple[str, Payload, dict[str, Any]]] = [
    (
        "pcapsvc.request.accepted",
        RequestAccepted(captures=(StartedCapture(capture_id="abc", interface="eth0"),)),
        {"captures": [{"id": "abc", "interface": "eth0"}], "problems": [], "warnings": []},
    ),
    (
        "pcapsvc.request.accepted",
        RequestAccepted(
            captures=(StartedCapture(capture_id="abc", interface="eth0"),),
            warnings=(Problem(path="tags", value='"a\\nb"', rule="should be one line"),),
        ),
        {
            "captures": [{"id": "abc", "interface": "eth0"}],
            "problems": [],
            "warnings": [{"path": "tags", "value": '"a\\nb"', "rule": "should be one line"}],
        },
    ),
    (
        "pcapsvc.request.rejected",
        RequestRejected(problems=PROBLEMS),
        {
            "problems": [
                {"path": "packets", "value": "0", "rule": "must be a whole number, 1 or more"},
                {"path": "request", "rule": "must be UTF-8"},
            ]
        },
    ),
    ("pcapsvc.request.busy", RequestBusy(reason="4 captures run"), {"reason": "4 captures run"}),
    (
        "pcapsvc.capture.started",
        CaptureStarted(
            bpf="tcp\nport 80", snap_length=96, limits=LIMITS, started=0.25, link_type=1, alertstr="x"
        ),
        {
            "bpf": "tcp\nport 80",
            "snap_length": 96,
            "limits": {"packets": 10, "bytes": 1000, "timeout": 5, "duration": 60},
            "started": "1970-01-01T00:00:00.250000Z",
            "link_type": 1,
            "alertstr": "x",
        },
    ),
    (
        "pcapsvc.capture.started",
        CaptureStarted(bpf="", snap_length=96, limits=LIMITS, started=0.25, link_type=1, history=NO_PAST),
        {
            "bpf": "",
            "snap_length": 96,
            "limits": {"packets": 10, "bytes": 1000, "timeout": 5, "duration": 60},
            "started": "1970-01-01T00:00:00.250000Z",
            "link_type": 1,
            "history": {"requested": 30, "packets": 0, "missing": [{"reason": "none"}]},
        },
    ),
    (
        "pcapsvc.capture.progress",
        CaptureProgress.of(Progress(packets=5, bytes=600, seconds=2.0004, received=7, dropped=2)),
        {"packets": 5, "bytes": 600, "seconds": 2.0, "received": 7, "dropped": 2},
    ),
    (
        "pcapsvc.capture.stopped",
        CaptureStopped(
            reason=StopReason.IDLE,
            packets=3,
            bytes=700,
            counts=PacketCounts(received=9, dropped=2, interface_dropped=1),
            file="a.pcap",
        ),
        {
            "reason": "idle",
            "packets": 3,
            "bytes": 700,
            "received": 9,
            "dropped": 2,
            "interface_dropped": 1,
            "file": "a.pcap",
        },
    ),
    (
        "pcapsvc.capture.stopped",
        CaptureStopped(
            reason=StopReason.PAST, packets=3, bytes=700, counts=None, file="a.pcap", history=SOME_PAST
        ),
        {
            "reason": "past",
            "packets": 3,
            "bytes": 700,
            "file": "a.pcap",
            "history": {
                "requested": 30.5,
                "first": "2023-11-14T22:13:20.750000Z",
                "packets": 3,
                "missing": [{"reason": "started", "seconds": 2.5}, {"reason": "drops", "packets": 7}],
            },
        },
    ),
    ("pcapsvc.capture.failed", CaptureFailed(problem="no memory"), {"problem": "no memory"}),
    (
        "pcapsvc.capture.file",
        CaptureFile(file="a.pcap", media_type="a/b", bytes=500),
        {"file": "a.pcap", "media_type": "a/b", "bytes": 500},
    ),
    ("pcapsvc.capture.done", CaptureDone(), {}),
    (
        "pcapsvc.delivery.delivered",
        CaptureDelivered(destination="s3", location="s3://b/k", seconds=0.25),
        {"destination": "s3", "location": "s3://b/k", "seconds": 0.25},
    ),
    (
        "pcapsvc.delivery.postponed",
        DeliveryPostponed(destination="s3", problem="503", attempts=2, next_try=1_700_000_000.5),
        {
            "destination": "s3",
            "problem": "503",
            "attempts": 2,
            "next_try": "2023-11-14T22:13:20.500000Z",
            "spooled": False,
        },
    ),
    (
        "pcapsvc.delivery.spooled",
        DeliverySpooled(destination="s3", problem="503"),
        {"destination": "s3", "problem": "503"},
    ),
    (
        "pcapsvc.delivery.failed",
        DeliveryFailed(destination="s3", problem="403"),
        {"destination": "s3", "problem": "403"},
    ),
    (
        "pcapsvc.reports.dropped",
        ReportsDropped(channel="redis", dropped=7, since=0.25),
        {"channel": "redis", "dropped": 7, "since": "1970-01-01T00:00:00.250000Z"},
    ),
]
#: The types that are about a capture.
ABOUT_CAPTURES = ("pcapsvc.capture.", "pcapsvc.delivery.")


class EventTests(unittest.SynchronousTestCase):
    """The JSON of events."""

    def setUp(self) -> None:
        """A node's events."""
        self.events = event_factory("sensor1", lambda: 1_700_000_000.0)

    def document(self, data: Payload) -> dict[str, Any]:
        """The JSON of an event, of a capture unless it is about a request or about events."""
        return as_json(self.event(data))

    def event(self, data: Payload) -> Event:
        """An event, of a capture unless it is about a request or about events."""
        if data.type.startswith(ABOUT_CAPTURES):
            return self.events.event(data, CAPTURE, "abc")
        return self.events.event(data, REQUEST)

    def test_header(self) -> None:
        """The header is that of CloudEvents 1.0; the data has the labels beside the payload."""
        event = EventFactory("sensor1", wall_clock=lambda: 1_700_000_000.0, new_id=lambda: "x-1").event(
            DeliverySpooled(destination="s3", problem="503"), CAPTURE, "abc"
        )
        self.assertEqual(
            as_json(event),
            {
                "specversion": "1.0",
                "id": "x-1",
                "source": "/pcapsvc/nodes/sensor1",
                "type": "pcapsvc.delivery.spooled",
                "subject": "abc",
                "time": "2023-11-14T22:13:20.000000Z",
                "datacontenttype": "application/json",
                "data": {
                    "via": "http",
                    "requestid": "r-1",
                    "alertid": "A-7",
                    "interface": "eth0",
                    "destination": "s3",
                    "problem": "503",
                },
            },
        )

    def test_each_type(self) -> None:
        """Each type has its data, and is valid by the schema."""
        for kind, data, expected in PAYLOADS:
            document = self.document(data)
            labels = (CAPTURE if kind.startswith(ABOUT_CAPTURES) else REQUEST).as_mapping()
            self.assertEqual((document["type"], document["data"]), (kind, {**labels, **expected}))
            self.assertEqual("subject" in document, kind.startswith(ABOUT_CAPTURES))
            self.assertEqual(problems(document), [])

    def test_all_types(self) -> None:
        """The schema describes all types of payloads, and no others; these tests know all."""
        kinds = {data.type for _, data, _ in PAYLOADS}
        self.assertEqual(kinds, {kind.type for kind in Payload.__subclasses__()})
        self.assertEqual(kinds, set(schema()["properties"]["type"]["enum"]))
        self.assertEqual(kinds, {one["$ref"].removeprefix("#/$defs/") for one in schema()["oneOf"]})

    def test_described(self) -> None:
        """The schema describes each type and each of its fields."""

        def described(part: dict[str, Any], path: str) -> None:
            for name, inner in part.get("properties", {}).items():
                if isinstance(inner, dict) and "const" not in inner and name != "data":
                    self.assertTrue("description" in inner or "$ref" in inner, f"{path}.{name}")
                    described(inner.get("items", inner), f"{path}.{name}")

        described(schema(), "event")
        for name, kind in schema()["$defs"].items():
            if name.startswith("pcapsvc."):
                self.assertIn("description", kind, name)
                described(kind["properties"]["data"], name)

    def test_encoded(self) -> None:
        """The JSON of an event is one line of UTF-8, and encoded once."""
        for _, data, _ in PAYLOADS:
            event = self.event(data)
            self.assertEqual(json.loads(event.json.decode("utf-8")), as_json(event))
            self.assertNotIn(b"\n", event.json)
            self.assertIs(event.json, event.json)

    def test_made_again(self) -> None:
        """An event that must be the same if it is made again is given its id and its time."""
        given: dict[str, Any] = {"id": "abc-x", "time": 1_600_000_000.0}
        one, other = (self.events.event(CaptureDone(), CAPTURE, "abc", **given) for _ in range(2))
        self.assertEqual(one.json, other.json)
        self.assertIn(b'"id":"abc-x"', one.json)
        self.assertIn(b'"time":"2020-09-13T12:26:40.000000Z"', one.json)

    def test_long_numbers(self) -> None:
        """The id of an alert may be a number of any length that a request may have."""
        event = self.events.event(CaptureDone(), Labels(via="http", alertid=10**254, interface="lo"), "abc")
        self.assertIn(b'"alertid":1' + b"0" * 254, event.json)

    def test_no_characters(self) -> None:
        """What XML has no characters for is escaped, because SQS refuses it."""
        labels = Labels(via="http", tags="a\ufffe\uffff\x7f\U0001f600", interface="lo")
        event = self.events.event(CaptureDone(), labels, "abc")
        self.assertIn(rb'"tags":"a\ufffe\uffff', event.json)
        self.assertEqual(json.loads(event.json)["data"]["tags"], labels.tags)

    def test_unknown_progress(self) -> None:
        """What the kernel has not said of a running capture is left out."""
        document = self.document(CaptureProgress.of(Progress(packets=0, bytes=24, seconds=0.0)))
        self.assertEqual(document["data"].keys() & {"received", "dropped"}, set())
        self.assertEqual(problems(document), [])

    def test_schema_refuses(self) -> None:
        """The schema refuses what is no event of ours."""
        good = self.document(DeliveryFailed(destination="s3", problem="403"))
        for changes in (
            {"id": ""},
            {"source": "/pcapsvc/nodes/a b"},
            {"type": "pcapsvc.nosuch"},
            {"subject": None},
            {"time": "2023-11-14 22:13:20"},
            {"specversion": "0.3"},
            {"data": {**good["data"], "requestid": None}},
            {"data": {**good["data"], "requestid": "x" * 129}},
            {"data": {**good["data"], "nosuch": 1}},
            {"data": {"via": "http"}},
        ):
            self.assertTrue(problems({**good, **changes}), changes)

    def test_absent(self) -> None:
        """What is absent is left out: labels, statistics, the file."""
        stopped = CaptureStopped(reason=StopReason.IDLE, packets=0, bytes=24, counts=None, file=None)
        document = as_json(self.events.event(stopped, Labels(via="sqs", interface="lo"), "abc"))
        self.assertEqual(
            document["data"], {"via": "sqs", "interface": "lo", "reason": "idle", "packets": 0, "bytes": 24}
        )
        self.assertEqual(problems(document), [])

    def test_node(self) -> None:
        """The source is a URI reference, whatever the node is called."""
        for node, encoded in (
            ("web-17.example", "web-17.example"),
            ("a/b c?#%", "a%2Fb%20c%3F%23%25"),
            ("Zoë", "Zo%C3%AB"),
        ):
            event = event_factory(node).event(CaptureDone(), CAPTURE, "abc")
            self.assertEqual(as_json(event)["source"], f"/pcapsvc/nodes/{encoded}")
            check([event])

    @given(st.text(st.characters(), min_size=1), st.text(st.characters()))
    def test_any_text(self, node: str, text: str) -> None:
        """Any text makes JSON in UTF-8, lone surrogates too; what has no bytes is replaced."""
        labels = Labels(via="http", tags=text, interface="eth0")
        event = event_factory(node).event(CaptureFailed(problem=text), labels, "abc")
        self.assertEqual(problems(as_json(event)), [])
        self.assertEqual(json.loads(event.json.decode("utf-8")), as_json(event))

    def test_made(self) -> None:
        """Each event has the node, the time at which it is made, and an id of its own."""
        times, ids = iter((1.5, 2.5)), iter("xy")
        factory = EventFactory("sensor1", wall_clock=lambda: next(times), new_id=lambda: next(ids))
        first, second = (factory.event(CaptureDone(), CAPTURE, "abc") for _ in range(2))
        self.assertEqual((first.node, first.time, first.id), ("sensor1", 1.5, "x"))
        self.assertEqual((second.time, second.id, second.type), (2.5, "y", "pcapsvc.capture.done"))

    def test_secrets(self) -> None:
        """What a server or a library said, or where a capture is, contains no secret of the configuration."""
        of_process.hide(["hunter22"])
        self.addCleanup(of_process.hide, ())
        factory = event_factory()
        for data in (
            DeliveryFailed(destination="s3", problem="hunter22"),
            DeliverySpooled(destination="s3", problem="hunter22"),
            DeliveryPostponed(destination="s3", problem="hunter22", attempts=1, next_try=0.0),
            CaptureFailed(problem="hunter22"),
            CaptureDelivered(destination="s3", location="https://a.example/hunter22", seconds=1.0),
        ):
            event = factory.event(data, CAPTURE, "abc")
            self.assertNotIn(b"hunter22", event.json)
            self.assertIn(b"<secret>", event.json)
            self.assertIs(type(event.data), type(data))

    def test_verdicts(self) -> None:
        """Each verdict about a request for this node is an event."""
        captures = (StartedCapture(capture_id="abc", interface="eth0"),)
        for verdict, data in (
            (
                Accepted(captures=captures, problems=PROBLEMS),
                RequestAccepted(captures=captures, problems=PROBLEMS),
            ),
            (Rejected(problems=PROBLEMS), RequestRejected(problems=PROBLEMS)),
            (Busy(reason="x"), RequestBusy(reason="x")),
        ):
            self.assertEqual(verdict_payload(verdict), data)
