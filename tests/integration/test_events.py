"""What becomes of requests through each source, as events on each channel, with the real peers."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers.cloudshark import CloudSharkServer, accept, refuse
from peers.daemon import Daemon
from peers.frames import udp_frame
from peers.wire import Wire
from tests.integration.event_listeners import RedisListener, read_queue, read_topic
from tests.integration.test_all_sources import SOURCES, AllSourcesCase, until
from tests.unit.event_schema import problems

shared_peer = "Kafka broker"

PATIENCE_SECONDS = 180.0
# The events of a capture that is delivered to the local directory, spooled for CloudShark, and delivered
# there after the restart.
_DELIVERED = (
    "request.accepted",
    "capture.started",
    "capture.stopped",
    "delivery.delivered local",
    "delivery.spooled cloudshark",
    "capture.done",
    "delivery.delivered cloudshark",
)
_NOTHING = ("request.accepted", "capture.started", "capture.stopped", "capture.done")


def described(event: dict[str, Any]) -> str:
    """An event in a few words."""
    words = event["type"].removeprefix("pcapsvc.")
    return f"{words} {event['data']['destination']}" if "destination" in event["data"] else words


def reason(events: Sequence[dict[str, Any]]) -> str | None:
    """Why a capture has stopped."""
    return next((one["data"]["reason"] for one in events if "reason" in one["data"]), None)


class EventsTests(AllSourcesCase):
    """A daemon with all sources and all channels, and a CloudShark that accepts nothing until a restart."""

    timeout = 300

    def setUp(self) -> None:
        """Set them up."""
        super().setUp()
        self.doomed = Wire()
        self.addCleanup(self.doomed.stop)
        self.doomed.start()
        self.cloudshark = CloudSharkServer()
        self.addCleanup(self.cloudshark.stop)
        self.cloudshark.start()
        self.cloudshark.behave(refuse(503))
        self.event_topic = f"{self.topic}-events"
        self.brokers.kafka.create_topic(self.event_topic)
        self.event_queue = self.brokers.sqs.create_queue(
            f"{self.topic}-events.fifo", FifoQueue="true", VisibilityTimeout="600"
        )
        self.listener = RedisListener(self.brokers.redis, self.event_topic)
        self.addCleanup(self.listener.stop)
        self.node = self.with_channels()

    def with_channels(self) -> Daemon:
        """A daemon whose sources are connected, and which has all channels."""
        spool = Path(self.mktemp()).absolute()
        spool.mkdir(mode=0o700)
        return self.daemon(
            general="maxcaptures = 8",
            more=(
                f"[reports]\nprogressinterval = 0.5\n"
                f'[reports.redis]\nsend = true\nchannel = "{self.event_topic}"\n'
                f'[reports.kafka]\nsend = true\ntopic = "{self.event_topic}"\n'
                f'[reports.sqs]\nsend = true\nurl = "{self.event_queue}"\n'
                f'[delivery]\nattempts = 1\nretryinterval = 3600\nspooldir = "{spool}"\n'
                f'[cloudshark]\nupload = true\nhost = "localhost"\nverify = "{self.cloudshark.ca_file}"\n'
                f'port = {self.cloudshark.port}\ntoken = "{self.cloudshark.token}"\n'
            ),
        )

    def ask(self, name: str, source: str, *, status: int = 202, **more: Any) -> int:
        """Request a capture through a source, with labels of its own; returns its port."""
        labels = {"requestid": f"{name} {source}", "customer": "ACME", "tags": f"{name},\u00e9", "alertid": 7}
        port, body = self.request(self.node, **labels, **more)
        self.send(self.node, source, body, status=status)
        return port

    def ask_all(self, name: str, **more: Any) -> list[int]:
        """Request a capture through each source; returns their ports."""
        return [self.ask(name, source, **more) for source in SOURCES]

    def of(self, name: str, source: str) -> list[dict[str, Any]]:
        """The events so far about a request, on Redis, without progress."""
        return [
            event
            for event in list(self.listener.events)
            if event["data"].get("requestid") == f"{name} {source}" and "progress" not in event["type"]
        ]

    def seen(self, name: str, last: str) -> None:
        """Wait until the last event about each request is there."""
        for source in SOURCES:
            look = lambda source=source: last in map(described, self.of(name, source)) or None  # noqa: E731
            until(look, f"{last} of {name} {source}", PATIENCE_SECONDS)

    def packets(self, ports: Sequence[int]) -> None:
        """Send a packet to each of these ports."""
        self.wire.send([udp_frame(port, port=port) for port in ports])

    def capture_ids(self, name: str) -> dict[str, str]:
        """The capture of each source's request."""
        self.seen(name, "capture.started")
        return {
            source: next(event["subject"] for event in self.of(name, source) if "subject" in event)
            for source in SOURCES
        }

    def have_packets(self, name: str) -> None:
        """Wait until the captures of these requests have a packet."""

        def have_them() -> bool | None:
            _, answer = self.node.request("GET", "/captures?state=capturing")
            names = [f"{name} {source}" for source in SOURCES]
            with_packets = [each["request"]["requestid"] for each in answer["captures"] if each["packets"]]
            return {*names} <= {*with_packets} or None

        until(have_them, f"a packet of each of {name}", PATIENCE_SECONDS)

    def test_each_outcome(self) -> None:
        """
        Each of these happens to a request of each source, and each channel has the same valid events about
        it, in order, with the same labels: delivered; rejected; busy; nothing captured; the device lost; not
        delivered, spooled, and delivered after a restart; ended by hand; ended through a broker.
        """
        self.ask_all("rejected", packets=0, status=400)
        self.seen("rejected", "request.rejected")

        ports = self.ask_all("delivered")
        self.ask_all("nothing", timeout=1)
        self.seen("delivered", "capture.started")
        self.packets(ports)
        for name in ("delivered", "nothing"):
            self.seen(name, "capture.done")

        ports = self.ask_all("lost", interface=[self.doomed.interface], packets=2)
        self.seen("lost", "capture.started")
        self.doomed.send([udp_frame(port, port=port) for port in ports])
        # The kernel drops what is on its way if the interface disappears.
        self.have_packets("lost")
        self.doomed.delete()
        self.seen("lost", "capture.done")

        by_hand, by_broker = self.ask_all("hand", packets=2), self.ask_all("broker", packets=2)
        ids = self.capture_ids("hand")
        self.seen("broker", "capture.started")
        self.ask_all("busy", status=503)
        self.seen("busy", "request.busy")
        self.packets([*by_hand, *by_broker])
        for name in ("hand", "broker"):
            self.have_packets(name)
        for capture_id in ids.values():
            self.assertEqual(self.node.request("DELETE", f"/captures/{capture_id}")[0], 200)
        for source in SOURCES:
            self.send(self.node, source, json.dumps({"nodere": ".", "stop": f"broker {source}"}), status=200)
        for name in ("hand", "broker"):
            self.seen(name, "capture.done")

        self.restart()
        for name in ("delivered", "lost", "hand", "broker"):
            self.seen(name, "delivery.delivered cloudshark")
        self.check_outcomes()
        self.node.end()
        self.check_channels()

    def restart(self) -> None:
        """Restart the daemon. From now on, CloudShark accepts what it gets."""
        self.node.end()
        self.cloudshark.behave(accept())
        self.node.start()

    def check_outcomes(self) -> None:
        """Each request has the events that it should have, and all of them its labels."""
        for name, expected, why in (
            ("delivered", _DELIVERED, "packets"),
            ("rejected", ("request.rejected",), None),
            ("nothing", _NOTHING, "idle"),
            ("lost", _DELIVERED, "device_lost"),
            ("hand", _DELIVERED, "cancelled"),
            ("broker", _DELIVERED, "cancelled"),
        ):
            for source in SOURCES:
                events = self.of(name, source)
                happened = [described(event) for event in events]
                # The two deliveries are independent of each other.
                if happened[3:4] == ["delivery.spooled cloudshark"]:
                    happened[3:5] = reversed(happened[3:5])
                self.assertEqual((happened, reason(events)), ([*expected], why), (name, source))
                self.check_labels(name, source, events)
        for source in SOURCES:
            self.assertEqual(described(self.of("busy", source)[0]), "request.busy")

    def check_labels(self, name: str, source: str, events: Sequence[dict[str, Any]]) -> None:
        """All events have the labels of the request, also those after the restart."""
        for event in events:
            data = event["data"]
            self.assertEqual(
                (data["via"], data["customer"], data["tags"], data["alertid"]),
                (source, "ACME", f"{name},\u00e9", 7),
            )
            self.assertEqual("subject" in event, "interface" in data)
        self.assertLessEqual(len({event.get("subject") for event in events} - {None}), 1)

    def check_channels(self) -> None:
        """All channels have the same valid events, in the same order as far as they keep one."""
        redis = [json.loads(body) for body in self.listener.raw]
        self.assertTrue([event for event in redis if event["type"] == "pcapsvc.capture.progress"])
        for event in redis:
            self.assertEqual(problems(event), [])
        kafka = read_topic(self.brokers.kafka, self.event_topic)
        # If the broker answers late, what it got is published again (docs/events.md).
        self.assertEqual([*dict.fromkeys(value for _, value in kafka)], self.listener.raw)
        for key, value in kafka:
            subject = json.loads(value).get("subject")
            self.assertEqual(key, None if subject is None else subject.encode())
        sqs = [message["Body"].encode() for message in read_queue(self.brokers.sqs, self.event_queue)]
        self.assertEqual(self.by_capture(sqs), self.by_capture(self.listener.raw))
        self.assertIsNone(re.search(r"were dropped|not published|#critical", self.node.log))

    def by_capture(self, bodies: Sequence[bytes]) -> dict[str, list[bytes]]:
        """The events of each capture, in order; and those of none, each by itself."""
        found: dict[str, list[bytes]] = defaultdict(list)
        for body in bodies:
            event = json.loads(body)
            found[event.get("subject", event["id"])].append(body)
        return found
