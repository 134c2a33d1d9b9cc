"""What is known of captures."""

from __future__ import annotations

import json

from twisted.trial import unittest

from pcapsvc.core.artifact import file_name
from pcapsvc.core.recording import PacketCounts
from pcapsvc.core.result import (
    Busy,
    CaptureDelivered,
    CaptureDone,
    CaptureFailed,
    CaptureStarted,
    CaptureStopped,
    DeliveryFailed,
    DeliveryPostponed,
    Event,
    Receipt,
    RequestRefused,
)
from pcapsvc.reports.ledger import REMEMBERED_CAPTURES, Ledger
from tests.core.test_artifact import recording


def started(capture_id: str = "a") -> CaptureStarted:
    """The start of a capture that has 5 packets by now."""
    return CaptureStarted(
        capture_id=capture_id,
        source="redis",
        plan=recording(customer="ACME", alertid=7, bpf="tcp").plan,
        link_type=1,
        started=1_700_000_000.75,
        progress=lambda: (5, 600),
    )


class LedgerTests(unittest.SynchronousTestCase):
    """From the start of a capture until it is forgotten."""

    def setUp(self) -> None:
        """A ledger of two destinations."""
        self.ledger = Ledger(["local", "s3"])

    def report(self, *events: Event) -> dict[str, object]:
        """Report events, and answer what is known of capture C{a} then."""
        for event in events:
            self.ledger.report(event)
        state = self.ledger.lookup("a")
        assert state is not None
        return json.loads(json.dumps(state))  # type: ignore[no-any-return]

    def test_unknown(self) -> None:
        """Nothing is known of what was never begun, whatever is said of it."""
        self.ledger.report(RequestRefused(source="redis", verdict=Busy(reason="x")))
        self.ledger.report(CaptureDone(capture_id="a"))
        self.ledger.report(CaptureFailed(capture_id="a", problem="x"))
        self.assertIsNone(self.ledger.lookup("a"))
        self.assertIsNone(self.ledger.lookup(""))

    def test_capturing(self) -> None:
        """A running capture has its plan, and its progress."""
        self.assertEqual(
            self.report(started()),
            {
                "id": "a",
                "state": "capturing",
                "source": "redis",
                "node": "sensor1",
                "interface": "eth0",
                "request": {"alertid": 7, "customer": "ACME"},
                "bpf": "tcp",
                "snap_length": 500,
                "limits": {"packets": 10, "bytes": 1000, "timeout": 5, "duration": 60},
                "started": "2023-11-14T22:13:20.750000Z",
                "link_type": 1,
                "packets": 5,
                "bytes": 600,
                "deliveries": [],
            },
        )

    def test_delivering(self) -> None:
        """One that has stopped tells why, and what the kernel counted; its deliveries are pending."""
        counts = PacketCounts(received=9, dropped=2, interface_dropped=1)
        made = recording(capture_id="a", counts=counts)
        state = self.report(started(), CaptureStopped(capture_id="a", recording=made))
        expected = {
            "state": "delivering",
            "reason": "idle",
            "packets": 3,
            "bytes": 0,
            "received": 9,
            "dropped": 2,
            "interface_dropped": 1,
            "file": file_name(made),
            "deliveries": [
                {"destination": "local", "state": "pending"},
                {"destination": "s3", "state": "pending"},
            ],
        }
        self.assertEqual({key: state[key] for key in expected}, expected)

    def test_no_packet(self) -> None:
        """One that got no packet is delivered nowhere, and has no file and no times; nor counts, perhaps."""
        made = recording(capture_id="a", packets=0)
        state = self.report(
            started(), CaptureStopped(capture_id="a", recording=made), CaptureDone(capture_id="a")
        )
        self.assertEqual((state["state"], state["deliveries"]), ("done", []))
        for key in ("received", "dropped", "interface_dropped", "file"):
            self.assertIsNone(state[key], key)

    def test_done(self) -> None:
        """Each delivery has its own end."""
        state = self.report(
            started(),
            CaptureStopped(capture_id="a", recording=recording(capture_id="a")),
            CaptureDelivered(capture_id="a", receipt=Receipt(destination="s3", location="s3://b/k")),
            DeliveryFailed(capture_id="a", destination="local", problem="no space"),
            CaptureDone(capture_id="a"),
        )
        self.assertEqual(state["state"], "done")
        self.assertEqual(
            state["deliveries"],
            [
                {"destination": "local", "state": "failed", "problem": "no space"},
                {"destination": "s3", "state": "delivered", "location": "s3://b/k"},
            ],
        )

    def test_retrying(self) -> None:
        """A delivery that is to be tried again says how often it failed, why, and when the next try is."""
        state = self.report(
            started(),
            CaptureStopped(capture_id="a", recording=recording(capture_id="a")),
            DeliveryPostponed(
                capture_id="a", destination="s3", problem="503", attempts=2, next_try=1_700_000_000.5
            ),
        )
        self.assertEqual(state["state"], "delivering")
        self.assertEqual(
            state["deliveries"],
            [
                {"destination": "local", "state": "pending"},
                {
                    "destination": "s3",
                    "state": "retrying",
                    "problem": "503",
                    "attempts": 2,
                    "next_try": "2023-11-14T22:13:20.500000Z",
                },
            ],
        )

    def test_spooled(self) -> None:
        """What is spooled is delivered after all was done, and that is known as well; or it is lost."""
        state = self.report(
            started(),
            CaptureStopped(capture_id="a", recording=recording(capture_id="a")),
            CaptureDelivered(capture_id="a", receipt=Receipt(destination="local", location="/x")),
            DeliveryFailed(capture_id="a", destination="s3", problem="503", spooled=True),
            CaptureDone(capture_id="a"),
        )
        self.assertEqual(state["state"], "done")
        deliveries = state["deliveries"]
        assert isinstance(deliveries, list)
        self.assertEqual(deliveries[1], {"destination": "s3", "state": "spooled", "problem": "503"})
        for event, expected in (
            (
                DeliveryPostponed(
                    capture_id="a",
                    destination="s3",
                    problem="reset",
                    attempts=1,
                    next_try=1_700_000_000.5,
                    spooled=True,
                ),
                {
                    "state": "spooled",
                    "problem": "reset",
                    "attempts": 1,
                    "next_try": "2023-11-14T22:13:20.500000Z",
                },
            ),
            (
                DeliveryFailed(capture_id="a", destination="s3", problem="too old"),
                {"state": "failed", "problem": "too old"},
            ),
            (
                CaptureDelivered(capture_id="a", receipt=Receipt(destination="s3", location="s3://b/k")),
                {"state": "delivered", "location": "s3://b/k"},
            ),
        ):
            deliveries = self.report(event)["deliveries"]
            assert isinstance(deliveries, list)
            self.assertEqual(deliveries[1], {"destination": "s3", **expected})

    def test_failed(self) -> None:
        """A failed capture says why, before and after it is done."""
        for event in (CaptureFailed(capture_id="a", problem="no memory"), CaptureDone(capture_id="a")):
            if not self.ledger.lookup("a"):
                self.ledger.report(started())
            state = self.report(event)
            self.assertEqual((state["state"], state["problem"]), ("failed", "no memory"))

    def test_each_by_itself(self) -> None:
        """What becomes of one capture says nothing of another."""
        state = self.report(started(), started("b"), CaptureFailed(capture_id="b", problem="x"))
        self.assertEqual(state["state"], "capturing")

    def test_forgotten(self) -> None:
        """Of those that are done, the oldest are forgotten; one that runs never is."""
        self.ledger.report(started("running"))
        for number in range(REMEMBERED_CAPTURES + 2):
            self.ledger.report(started(str(number)))
            self.ledger.report(CaptureDone(capture_id=str(number)))
        self.assertIsNone(self.ledger.lookup("0"))
        self.assertIsNone(self.ledger.lookup("1"))
        self.assertIsNotNone(self.ledger.lookup("2"))
        self.assertIsNotNone(self.ledger.lookup("running"))
