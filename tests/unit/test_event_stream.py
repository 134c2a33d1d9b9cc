"""C{/events}: server-sent events."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet import error

from pcapsvc.core.errors import Problem
from pcapsvc.core.event import (
    CaptureDone,
    CaptureProgress,
    DeliveryFailed,
    DeliverySpooled,
    Event,
    Payload,
    RequestBusy,
    RequestRejected,
    as_json,
)
from pcapsvc.core.labels import Labels
from pcapsvc.interfaces.reports import IProgressReporter
from pcapsvc.web.event_stream import (
    COMMENT_SECONDS,
    GATHER_SECONDS,
    KEPT_EVENTS,
    MOST_KEPT_BYTES,
    MOST_READERS,
    Events,
    EventStreams,
)
from tests.unit.http_case import HTTPTestCase, Transport

DONE = CaptureDone()
PROGRESS = CaptureProgress(packets=1, bytes=24, seconds=1.0)


class EventsTests(HTTPTestCase):
    """A node that reports events, and clients that read them."""

    max_connections = 128

    def setUp(self) -> None:
        super().setUp()
        self.streams = EventStreams(self.clock)
        self.source.root.putChild(b"events", Events(self.streams))

    def tearDown(self) -> None:
        """After a stop there is no reader and no timer."""
        self.successResultOf(self.source.stopService())
        self.clock.advance(0)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertFalse(self.streams.wants_progress())

    def read(self, query: str = "", **headers: str) -> Transport:
        """A client that reads events, from any address."""
        given = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        client = self.connect(address=None)
        client.send(f"GET /events{query} HTTP/1.1\r\nHost: localhost\r\n{given}\r\n".encode("latin-1"))
        return client

    def event(self, payload: Payload, **labels: Any) -> Event:
        """An event, about a capture or about a request."""
        if payload.type.startswith("pcapsvc.request."):
            return self.reported.event(payload, Labels(via="http", **labels))
        return self.reported.event(payload, Labels(via="http", interface="eth0", **labels), "a")

    def happen(self, *payloads: Payload, **labels: Any) -> list[Event]:
        """Report events, and wait until they are passed on."""
        events = [self.event(payload, **labels) for payload in payloads]
        for event in events:
            self.streams.report(event)
        self.clock.advance(GATHER_SECONDS)
        return events

    def body(self, client: Transport) -> bytes:
        """What a client has received, without its frames of HTTP."""
        head, _, rest = client.value().partition(b"\r\n\r\n")
        self.assertIn(b"HTTP/1.1 200 OK\r\n", head)
        self.assertIn(b"Content-Type: text/event-stream\r\n", head)
        body = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            body += rest[: int(size, 16)]
            rest = rest[int(size, 16) + 2 :]
        return body

    def got(self, client: Transport) -> list[str]:
        """The ids of the events that a client has received, each of which is as it should be."""
        ids = []
        for block in self.body(client).decode().split("\n\n")[:-1]:
            if block == ":":
                continue
            fields = dict(line.split(": ", 1) for line in block.split("\n"))
            data = json.loads(fields["data"])
            self.assertEqual((data["id"], data["type"]), (fields["id"], fields["event"]))
            self.assertEqual(list(fields), ["id", "event", "data"])
            ids.append(fields["id"])
        return ids

    @staticmethod
    def ids(events: list[Event]) -> list[str]:
        """The ids of events."""
        return [event.id for event in events]

    def test_interface(self) -> None:
        """It is a reporter of progress, too, if anybody reads it."""
        self.assertTrue(IProgressReporter.providedBy(self.streams))
        self.assertFalse(self.streams.wants_progress())
        client = self.read()
        self.assertTrue(self.streams.wants_progress())
        client.lose(error.ConnectionLost())
        self.assertFalse(self.streams.wants_progress())
        self.read("?type=pcapsvc.delivery")
        self.assertFalse(self.streams.wants_progress())

    def test_read(self) -> None:
        """A reader gets what happens from now on: the same JSON as everybody."""
        self.happen(DONE)
        client = self.read()
        self.assertEqual(self.body(client), b"")
        events = self.happen(DONE, RequestBusy(reason="two\nlines\r\u2028ü"), PROGRESS)
        self.assertEqual(self.got(client), self.ids(events))
        data = self.body(client).split(b"data: ")[2].split(b"\n")[0]
        self.assertEqual(json.loads(data), as_json(events[1]))

    def test_soon(self) -> None:
        """Events are gathered for a moment, and sent at once."""
        client = self.read()
        for _ in range(3):
            self.streams.report(self.event(DONE))
        self.assertEqual(self.body(client), b"")
        self.clock.advance(GATHER_SECONDS)
        self.assertEqual(len(self.got(client)), 3)

    def test_filters(self) -> None:
        """A reader may choose by C{requestid}, and by one or more types or the beginning of types."""
        spooled = DeliverySpooled(destination="s3", problem="x")
        failed = DeliveryFailed(destination="s3", problem="x")
        queries = {
            "?requestid=r-1": (0, 2),
            "?type=pcapsvc.delivery": (1, 2),
            "?type=pcapsvc.delivery.spooled": (1,),
            "?type=pcapsvc.delivery.failed&type=pcapsvc.capture": (0, 2),
            "?type=pcapsvc.delivery&requestid=r-1": (2,),
            "?type=pcapsvc&type=pcapsvc": (0, 1, 2),
            "?requestid=r-2": (),
        }
        clients = {query: self.read(query) for query in queries}
        events = [
            *self.happen(DONE, requestid="r-1"),
            *self.happen(spooled),
            *self.happen(failed, requestid="r-1"),
        ]
        for query, expected in queries.items():
            self.assertEqual(self.got(clients[query]), [events[number].id for number in expected], query)

    def test_wrong_filters(self) -> None:
        """What is not a type of events, or not a parameter, is refused."""
        for query in (
            "?type=pcapsvc.deliver",
            "?type=",
            "?typ=pcapsvc",
            "?requestid=a&requestid=b",
            "?type=x&type=y",
        ):
            self.assertEqual(self.ask("GET", f"/events{query}").code, 400, query)
        problems = self.ask("GET", "/events?type=x&type=y&type=x&typ=z").content["problems"]
        self.assertEqual(
            [(each["path"], each["value"]) for each in problems],
            [("typ", None), ("type", '"x"'), ("type", '"y"')],
        )
        detail = self.ask("GET", "/events?type=delivery").content["detail"]
        self.assertTrue(detail.startswith('type = "delivery": must be a type of event'), detail)

    def test_head(self) -> None:
        """HEAD has the head only, and takes no place."""
        for _ in range(MOST_READERS + 1):
            client = self.say(b"HEAD /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            self.assertTrue(client.value().startswith(b"HTTP/1.1 200 OK\r\n"))
            self.assertTrue(client.value().endswith(b"\r\n\r\n"))
            client.lose(error.ConnectionLost())

    def test_come_back(self) -> None:
        """A reader that comes back gets what it has missed, if that is kept; its filter applies."""
        events = self.happen(DONE, PROGRESS, RequestBusy(reason="x"), DONE)
        for last, query, expected in (
            (events[0].id, "", events[1:]),
            (events[1].id, "", events[2:]),
            (events[3].id, "", []),
            (events[0].id, "?type=pcapsvc.capture.done", events[3:]),
            ("unknown", "", events),
            ("\xff", "", events),
            ("", "", []),
        ):
            client = self.read(query, Last_Event_ID=last)
            self.assertEqual(self.got(client), self.ids(expected), (last, query))

    def test_kept(self) -> None:
        """The last 1,000 events are kept. Progress counts by itself: it doesn't drive out the others."""
        progress = self.happen(*[PROGRESS] * (KEPT_EVENTS + 10))
        others = self.happen(*[DONE] * KEPT_EVENTS)
        client = self.read(Last_Event_ID="unknown")
        self.assertEqual(self.got(client), self.ids([*progress[10:], *others]))
        more = self.happen(*[DONE] * 10)
        client = self.read("?type=pcapsvc.capture.done", Last_Event_ID="unknown")
        self.assertEqual(self.got(client), self.ids([*others[10:], *more]))

    def test_kept_bytes(self) -> None:
        """What is kept is bounded in bytes, too: large events make room earlier."""
        problems = tuple(Problem(path="x", rule="y" * 10_000) for _ in range(10))
        events = self.happen(*[RequestRejected(problems=problems)] * 50)
        client = self.read(Last_Event_ID="unknown")
        found = self.got(client)
        self.assertTrue(5 < len(found) < 50)
        self.assertLess(sum(len(event.json) for event in events[-len(found) :]), MOST_KEPT_BYTES)
        self.assertEqual(found, self.ids(events)[-len(found) :])

    def test_long_labels(self) -> None:
        """The last 1,000 events are kept even if their labels are long: progress makes room for them."""
        labels = {"customer": "c" * 1024, "tags": "t" * 1024, "requestid": "r" * 128, "alertid": "a" * 255}
        self.read()
        others = self.happen(*[DONE] * KEPT_EVENTS, **labels)
        progress = self.happen(*[PROGRESS] * KEPT_EVENTS, **labels)
        found = self.got(self.read(Last_Event_ID="unknown"))
        self.assertEqual(found[:KEPT_EVENTS], self.ids(others))
        self.assertEqual(found[KEPT_EVENTS:], self.ids(progress)[KEPT_EVENTS * 2 - len(found) :])
        self.assertGreater(len(found), KEPT_EVENTS)

    def test_kept_bytes_of_any_text(self) -> None:
        """Every text of an event counts, by its bytes."""
        events = self.happen(*[RequestBusy(reason="\U0001f600" * 10_000)] * (MOST_KEPT_BYTES // 40_000))
        found = self.got(self.read(Last_Event_ID="unknown"))
        self.assertLess(len(found), len(events) // 2 + 2)

    def test_progress_with_long_labels(self) -> None:
        """The progress of captures with long labels is bounded in bytes, and disconnects no reader."""
        client = self.read()
        client.producer.pauseProducing()
        others = self.happen(*[DONE] * 100)
        self.happen(*[PROGRESS] * KEPT_EVENTS, customer="c" * 1024, tags="\u4e00" * 1024)
        self.assertFalse(client.aborted)
        client.producer.resumeProducing()
        self.assertEqual(self.got(client), self.ids(others))

    def test_come_back_after_progress(self) -> None:
        """A reader whose last event was progress that isn't kept gets what came after it, nevertheless."""
        events = self.happen(DONE, PROGRESS, DONE)
        self.happen(*[PROGRESS] * KEPT_EVENTS)
        client = self.read("?type=pcapsvc.capture.done", Last_Event_ID=events[1].id)
        self.assertEqual(self.got(client), [events[2].id])

    def test_comments(self) -> None:
        """A comment is sent after every 15 s without an event, and the stream goes on for ever."""
        client = self.read()
        self.clock.advance(COMMENT_SECONDS - 1)
        self.happen(DONE)
        self.clock.advance(COMMENT_SECONDS - 1)
        self.assertNotIn(b":\n\n", self.body(client).split(b"\n\n")[-1])
        before = len(self.body(client))
        for _ in range(100):
            self.clock.advance(COMMENT_SECONDS)
        self.assertEqual(self.body(client)[before:], b":\n\n" * 100)
        self.assertFalse(client.is_lost)

    def test_too_many(self) -> None:
        """50 clients may read at once; the next one learns when to try again."""
        clients = [self.read() for _ in range(MOST_READERS)]
        response = self.ask("GET", "/events")
        self.assertEqual((response.code, response.headers["retry-after"]), (503, "10"))
        clients[7].lose(error.ConnectionLost())
        clients[7] = self.read()
        [event] = self.happen(DONE)
        self.assertEqual([self.got(client) for client in clients], [[event.id]] * MOST_READERS)

    def test_slow(self) -> None:
        """A slow reader misses progress first; what it has missed of the others it gets later."""
        slow, quick = self.read(), self.read()
        slow.producer.pauseProducing()
        events = self.happen(DONE, PROGRESS, DONE, PROGRESS)
        self.assertEqual(self.got(slow), [])
        self.assertEqual(self.got(quick), self.ids(events))
        slow.producer.resumeProducing()
        self.assertEqual(self.got(slow), [events[0].id, events[2].id])
        [event] = self.happen(PROGRESS)
        self.assertEqual(self.got(slow)[2:], [event.id])

    def test_too_slow(self) -> None:
        """A reader that falls behind what is kept is disconnected, and can come back; others are not."""
        slow, choosy, quick = self.read(), self.read("?requestid=r-1"), self.read()
        for client in (slow, choosy):
            client.producer.pauseProducing()
        for _ in range(KEPT_EVENTS):
            self.happen(DONE)
        self.happen(PROGRESS)
        self.assertFalse(slow.aborted)
        self.happen(DONE)
        self.assertTrue(slow.aborted)
        self.assertFalse(choosy.aborted)
        self.assertEqual(len(self.got(quick)), KEPT_EVENTS + 2)

    def test_burst(self) -> None:
        """Many events at once cost no reader its connection that reads."""
        client = self.read()
        events = self.happen(*[DONE] * (5 * KEPT_EVENTS))
        self.assertEqual(self.got(client), self.ids(events))

    def test_little_at_once(self) -> None:
        """What is sent to a reader that doesn't read is bounded, however much it has missed."""
        self.happen(*[RequestBusy(reason="x" * 1000)] * KEPT_EVENTS)
        client = self.connect()
        write = client.writeSequence

        def fill(data: Any) -> None:
            write(data)
            if client.producer is not None and len(client.value()) > 65536:
                client.producer.pauseProducing()

        client.writeSequence = fill  # type: ignore[method-assign]
        client.send(b"GET /events HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: unknown\r\n\r\n")
        self.assertLess(len(client.value()), 200_000)
        while len(self.got(client)) < KEPT_EVENTS:
            client.producer.resumeProducing()

    def test_broken_reader(self) -> None:
        """A reader that can't be served affects neither what is reported nor the others."""
        client, other = self.read(), self.read()

        def fail(data: bytes) -> None:
            raise ZeroDivisionError

        client.writeSequence = fail  # type: ignore[method-assign,assignment]
        [event] = self.happen(DONE)
        self.assertEqual(self.got(other), [event.id])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_stop(self) -> None:
        """A stop ends every stream at once."""
        client = self.read()
        self.successResultOf(self.source.stopService())
        self.assertTrue(client.is_lost)
        self.happen(DONE)
