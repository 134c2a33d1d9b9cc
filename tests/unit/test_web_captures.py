"""C{/captures}: lists, states, and the end of a capture by hand."""

from __future__ import annotations

from typing import Any

from twisted.internet import error

from pcapsvc.core.event import CaptureDone, CaptureStopped
from pcapsvc.core.session import StopReason
from pcapsvc.testing import MemoryCapture
from pcapsvc.web.captures import END_SECONDS
from tests.core.test_artifact import recording
from tests.unit.http_case import HTTPTestCase, Response, Transport, TurnClock

STOPPED = CaptureStopped(reason=StopReason.CANCELLED, packets=3, bytes=700, counts=None, file="a.pcap")


class ListCase(HTTPTestCase):
    """A list of captures."""

    def many(self) -> list[dict[str, Any]]:
        """The states of many captures, the newest first, whose labels are as long as they may be."""
        for number in range(200):
            self.begin_capture(f"n{number}", customer="\u4e00" * 1024)
        return [self.state_of(f"n{number}") for number in reversed(range(200))]


class ListTests(ListCase):
    """C{GET /captures}."""

    def ids(self, query: str = "") -> list[str]:
        """The ids in the answer, in order."""
        response = self.ask("GET", f"/captures{query}")
        self.assertEqual(response.code, 200)
        return [one["id"] for one in response.content["captures"]]

    def test_semicolon(self) -> None:
        """A semicolon separates no parameters."""
        self.begin_capture("abc2", requestid="r;1 +")
        self.begin_capture("abc3", requestid="r")
        self.assertEqual(self.ids("?requestid=r;1+%2b"), ["abc2"])

    def test_newest_first(self) -> None:
        """All captures are listed with their states, the newest first."""
        self.begin_capture("abc2")
        response = self.ask("GET", "/captures")
        self.assertEqual(response.content, {"captures": [self.state_of("abc2"), self.state_of("abc1")]})
        self.assertEqual(self.ask("HEAD", "/captures").headers, response.headers)

    def test_filters(self) -> None:
        """Captures may be chosen by their state and by the C{requestid} of their request."""
        self.begin_capture("abc2", requestid="r-1 ü")
        self.begin_capture("abc3", requestid="r-2")
        self.report("abc3", STOPPED)
        self.report("abc1", STOPPED)
        self.report("abc1", CaptureDone())
        for query, expected in (
            ("?state=capturing", ["abc2"]),
            ("?state=delivering", ["abc3"]),
            ("?state=done", ["abc1"]),
            ("?state=failed", []),
            ("?requestid=r-1+%C3%BC", ["abc2"]),
            ("?requestid=", []),
            ("?requestid=r-2&state=delivering&limit=1", ["abc3"]),
            ("?requestid=r-2&state=done", []),
        ):
            self.assertEqual(self.ids(query), expected, query)

    def test_limit(self) -> None:
        """100 are listed by default, and up to 1,000 on request."""
        for number in range(1100):
            self.begin_capture(f"n{number}")
        for query, count in (("", 100), ("?limit=1", 1), ("?limit=1000", 1000)):
            ids = self.ids(query)
            self.assertEqual((ids[0], len(ids)), ("n1099", count))

    def slow(self, query: str = "?limit=200") -> Transport:
        """A client that reads nothing yet."""
        client = self.connect()
        write = client.writeSequence

        def fill(data: Any) -> None:
            write(data)
            if client.producer is not None and len(client.value()) > 65536:
                client.producer.pauseProducing()

        client.writeSequence = fill  # type: ignore[method-assign]
        client.send(f"GET /captures{query} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return client

    def read(self, client: Transport) -> None:
        """Let a client read everything."""
        for _ in range(100):
            if not client.value().endswith(b"\r\n0\r\n\r\n"):
                client.producer.resumeProducing()
                self.clock.advance(0)

    def test_long(self) -> None:
        """Of a long list, little is kept for a client that reads slowly; in the end it has all of it."""
        states = self.many()
        client = self.slow()
        self.assertLess(len(client.value()), 150_000)
        self.read(client)
        self.assertEqual(Response(client.value()).content, {"captures": states})

    def test_changed_meanwhile(self) -> None:
        """What was chosen by its state, and isn't in it any more when it is sent, is left out."""
        states = self.many()
        client = self.slow("?limit=200&state=capturing")
        self.report("n0", STOPPED)
        self.read(client)
        self.assertEqual(Response(client.value()).content, {"captures": states[:-1]})

    def test_half_closed(self) -> None:
        """A client that shuts down its side gets a long list to its end."""
        states = self.many()
        client = self.slow()
        client.protocol.readConnectionLost()
        self.assertFalse(client.is_lost)
        self.read(client)
        self.assertEqual(Response(client.value()).content, {"captures": states})

    def test_wrong(self) -> None:
        """What is not a parameter, or not a value of one, gets 400, which names the parameter."""
        for query, path in (
            ("state=running", "state"),
            ("state=", "state"),
            ("limit=0", "limit"),
            ("limit=1001", "limit"),
            ("limit=-1", "limit"),
            ("limit=1.5", "limit"),
            ("limit=%D9%A1", "limit"),
            ("limit=" + "9" * 5000, "limit"),
            ("limit=1&limit=2", "limit"),
            ("limit=1;state=done", "limit"),
            ("limit", "limit"),
            ("state&limit=1", "state"),
            ("fellow", "fellow"),
            ("&".join(["requestid"] * 101), "query"),
            ("requestid=%FF", "requestid"),
            ("stat=done", "stat"),
            ("%FF=1", "\\xff"),
        ):
            response = self.ask("GET", f"/captures?{query}")
            self.assertEqual(response.code, 400, query)
            self.assertEqual(response.content["type"], "/pcapsvc/problems/bad-parameters")
            self.assertEqual([each["path"] for each in response.content["problems"]], [path])

    def test_all_bad_parameters(self) -> None:
        """All problems of a query are listed at once, one for each parameter."""
        response = self.ask("GET", "/captures?foo=1&state=bla&limit=0&requestid=%FF&bar=2&bar=3")
        self.assertEqual(response.code, 400)
        problems = {each["path"]: each["rule"] for each in response.content["problems"]}
        self.assertEqual(set(problems), {"foo", "bar", "state", "limit", "requestid"})
        self.assertEqual(len(response.content["problems"]), 5)
        self.assertEqual(problems["limit"], "must be a whole number from 1 to 1000")
        twice = self.ask("GET", "/captures?state=bla&state=done&limit=0").content["problems"]
        self.assertEqual([each["path"] for each in twice], ["state", "limit"])

    def test_many_unknown_parameters(self) -> None:
        """The answer is bounded."""
        response = self.ask("GET", "/captures?" + "&".join(f"{'x' * 40}{number}" for number in range(100)))
        self.assertEqual(response.code, 400)
        problems = response.content["problems"]
        self.assertEqual(len(problems), 21)
        self.assertEqual(problems[-1], {"path": "query", "value": None, "rule": "has 80 more problems"})


class TurnsTests(ListCase):
    """C{GET /captures}, with the turns of a reactor."""

    make_clock = TurnClock

    def test_turns(self) -> None:
        """A long list is not sent in one turn of the reactor, however fast the client reads."""
        self.many()
        client = self.connect()
        client.protocol.dataReceived(b"GET /captures?limit=200 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        before = 0
        for _ in range(5):
            self.clock.advance(0)
            self.assertLess(len(client.value()) - before, 50_000)
            before = len(client.value())
        self.assertGreater(before, 50_000)

    def test_gone(self) -> None:
        """A client that goes away leaves nothing behind."""
        self.many()
        client = self.connect()
        client.protocol.dataReceived(b"GET /captures?limit=200 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self.clock.advance(0)
        client.lose(error.ConnectionLost())
        self.assertEqual(self.clock.getDelayedCalls(), [])


class DeleteTests(HTTPTestCase):
    """C{DELETE /captures/ID}."""

    def setUp(self) -> None:
        """A capture runs."""
        super().setUp()
        self.capture = MemoryCapture("abc1", recording().plan)
        self.captures.add(self.capture)

    def delete(self) -> Any:
        """A client that asks for the end of the capture."""
        return self.say(b"DELETE /captures/abc1 HTTP/1.1\r\nHost: localhost\r\n\r\n")

    def test_ended(self) -> None:
        """The capture ends, and the answer is its state after that."""
        client = self.delete()
        self.assertEqual(self.capture.reasons, [StopReason.CANCELLED])
        self.assertEqual(client.value(), b"")
        self.begin_capture("abc2")
        self.assertEqual(client.value(), b"")
        self.report("abc1", STOPPED)
        response = Response(client.value())
        self.assertEqual((response.code, response.content), (200, self.state_of("abc1")))
        self.assertEqual(response.content["reason"], "cancelled")

    def test_late(self) -> None:
        """The end is not waited for without limit."""
        client = self.delete()
        self.clock.advance(END_SECONDS)
        self.assertEqual(Response(client.value()).content["state"], "capturing")
        self.report("abc1", STOPPED)

    def test_ended_before(self) -> None:
        """A capture that has ended can't be ended again."""
        for payload in (STOPPED, CaptureDone()):
            self.report("abc1", payload)
            self.assertEqual(self.ask("DELETE", "/captures/abc1").code, 409)
        self.assertEqual(self.capture.reasons, [])

    def test_unknown(self) -> None:
        """An unknown capture gets 404."""
        self.assertEqual(self.ask("DELETE", "/captures/nosuch").code, 404)
