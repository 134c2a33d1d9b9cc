"""Requests over HTTP, without a network."""

from __future__ import annotations

from typing import Any

from twisted.internet import defer, error
from twisted.internet.testing import MemoryReactor
from twisted.logger import LogLevel, formatEvent
from twisted.trial import unittest

from pcapsvc.core.errors import Problem, SettingsError
from pcapsvc.core.message import Message
from pcapsvc.core.result import Accepted, Busy, Ended, NotForThisNode, Rejected, StartedCapture
from pcapsvc.net.http_server import CLOSE_SECONDS
from pcapsvc.sources.http.source import HTTPSource, http_endpoint
from pcapsvc.testing import MemorySink
from tests.unit.http_case import ADDRESS, HTTPTestCase, Response


class PostTests(HTTPTestCase):
    """C{POST /captures} answers with the verdict."""

    def test_accepted(self) -> None:
        """An accepted request gets the capture's id, interface and location."""
        response = self.ask("POST", "/captures", b'{"node":"any"}')
        self.assertEqual(response.code, 202)
        self.assertEqual(
            response.content,
            {
                "captures": [{"id": "abc1", "interface": "eth0"}],
                "filter": "",
                "problems": [],
                "warnings": [],
            },
        )
        self.assertEqual(response.headers["location"], "/captures/abc1")
        self.assertEqual(self.sink.submitted, [("http", b'{"node":"any"}')])

    def test_after_the_verdict(self) -> None:
        """The answer waits for the verdict; a client that has gone by then doesn't affect the others."""
        verdicts = self.sink.hold()
        clients = [self.connect(), self.connect()]
        for client in clients:
            client.send(b"POST /captures HTTP/1.1\r\nHost: [::1]:8480\r\nContent-Length: 2\r\n\r\n{}")
        self.assertEqual([client.value() for client in clients], [b"", b""])
        clients[0].lose(error.ConnectionLost())
        self.assertFalse(verdicts[0].called)
        for verdict in verdicts:
            verdict.callback(self.sink.verdict)
        self.assertEqual(Response(clients[1].value()).code, 202)

    def test_several(self) -> None:
        """Several captures have no common location; problems of other interfaces are listed."""
        self.sink.verdict = Accepted(
            captures=(
                StartedCapture(capture_id="a", interface="eth0"),
                StartedCapture(capture_id="b", interface="eth1"),
            ),
            filter="port 80",
            problems=(Problem(path="interface", value='"eth2"', rule="is down"),),
        )
        response = self.ask("POST", "/captures", b"{}")
        self.assertEqual(response.content["filter"], "port 80")
        self.assertEqual(response.code, 202)
        self.assertEqual([capture["id"] for capture in response.content["captures"]], ["a", "b"])
        self.assertEqual(
            response.content["problems"], [{"path": "interface", "value": '"eth2"', "rule": "is down"}]
        )
        self.assertNotIn("location", response.headers)

    def test_ended(self) -> None:
        """A request that ended captures gets their ids and interfaces; there may be none."""
        for captures in ((), (StartedCapture(capture_id="a", interface="eth0"),)):
            self.sink.verdict = Ended(captures=captures)
            response = self.ask("POST", "/captures", b"{}")
            self.assertEqual(response.code, 200)
            expected = [{"id": each.capture_id, "interface": each.interface} for each in captures]
            self.assertEqual(response.content, {"captures": expected})
            self.assertNotIn("location", response.headers)

    def test_rejected(self) -> None:
        """Every problem is listed."""
        self.sink.verdict = Rejected(
            problems=(
                Problem(path="packets", value="-1", rule="is wrong"),
                Problem(path="node", rule="is no"),
            )
        )
        response = self.ask("POST", "/captures", b"{}")
        self.assertEqual(response.code, 400)
        self.assertEqual(
            response.content,
            {
                "type": "/pcapsvc/problems/request-rejected",
                "title": "Request rejected",
                "status": 400,
                "detail": "packets = -1: is wrong; node: is no",
                "problems": [
                    {"path": "packets", "value": "-1", "rule": "is wrong"},
                    {"path": "node", "value": None, "rule": "is no"},
                ],
            },
        )

    def test_busy(self) -> None:
        """A client learns why, and when to try again."""
        self.sink.verdict = Busy(reason="32 captures run")
        response = self.ask("POST", "/captures", b"{}")
        self.assertEqual(
            response.content,
            {
                "type": "/pcapsvc/problems/busy",
                "title": "Busy",
                "status": 503,
                "detail": "32 captures run",
            },
        )
        self.assertEqual(response.code, 503)
        self.assertEqual(response.headers["retry-after"], "10")

    def test_for_others(self) -> None:
        """A request for other nodes gets 404."""
        self.sink.verdict = NotForThisNode()
        response = self.ask("POST", "/captures", b"{}")
        self.assertEqual(response.code, 404)
        self.assertEqual(response.content["type"], "/pcapsvc/problems/not-for-this-node")

    def test_form(self) -> None:
        """The media type doesn't matter: what C{curl -d} calls a form is not parsed as one."""
        for kind in ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain"):
            self.assertEqual(self.ask("POST", "/captures?x=%", b"{}", Content_Type=kind).code, 202)
        self.assertEqual({body for _, body in self.sink.submitted}, {b"{}"})

    def test_chunked(self) -> None:
        """A chunked body is joined."""
        transport = self.say(
            b"POST /captures HTTP/1.1\r\nHost: [::1]:8480\r\nTransfer-Encoding: chunked\r\n\r\n"
            b'2\r\n{"\r\n3\r\na":\r\n2\r\n1}\r\n0\r\n\r\n'
        )
        self.assertEqual(Response(transport.value()).code, 202)
        self.assertEqual(self.sink.submitted, [("http", b'{"a":1}')])

    def test_broken_sink(self) -> None:
        """An internal error is a problem document without details, and is logged."""

        class Broken(MemorySink):
            def submit(self, message: Message) -> Any:
                raise ZeroDivisionError("secret")

        source = HTTPSource(self.clock, self.endpoint, Broken())
        source.startService()
        response = self.ask("POST", "/captures", b"{}")
        self.assertEqual(response.code, 500)
        self.assertNotIn("secret", str(response.content))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        [failed] = [formatEvent(event) for event in self.events if event["log_level"] >= LogLevel.warn]
        self.assertEqual(failed, "HTTP: POST /captures failed")

    def test_nothing_logged(self) -> None:
        """Requests are not logged, however they are answered."""
        self.events.clear()
        self.assertEqual(self.ask("POST", "/captures", b"{}").code, 202)
        self.assertEqual(self.ask("GET", "/captures/abc1").code, 200)
        self.assertEqual(self.ask("GET", "/captures/nosuch").code, 404)
        self.assertEqual(self.ask("DELETE", "/captures").code, 405)
        self.assertEqual([formatEvent(event) for event in self.events], [])

    def test_continue(self) -> None:
        """A client that expects C{100 Continue} gets it."""
        transport = self.say(
            b"POST /captures HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        )
        self.assertEqual(transport.value(), b"HTTP/1.1 100 Continue\r\n\r\n")
        transport.clear()
        transport.send(b"{}")
        self.assertEqual(Response(transport.value()).code, 202)

    def test_one_after_another(self) -> None:
        """A connection serves many requests, even if they are sent at once."""
        one = b"POST /captures HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
        transport = self.say(one * 3)
        raw = transport.value()
        for _ in range(3):
            response = Response(raw)
            self.assertEqual(response.code, 202)
            raw = response.rest
        self.assertEqual(raw, b"")
        self.assertFalse(transport.is_lost)


class GetTests(HTTPTestCase):
    """C{GET /captures/ID}, and other paths."""

    def test_state(self) -> None:
        """The answer is the capture's state."""
        response = self.ask("GET", "/captures/abc1?pretty")
        self.assertEqual((response.code, response.content), (200, self.state_of("abc1")))

    def test_encoded(self) -> None:
        """A path may be percent-encoded; an encoded slash separates nothing."""
        self.assertEqual(self.ask("GET", "/%63aptures/ab%631").content, self.state_of("abc1"))
        self.assertEqual(self.ask("GET", "/captures%2Fabc1").code, 404)

    def test_head(self) -> None:
        """HEAD has the headers of GET, and no body."""
        expected = self.ask("GET", "/captures/abc1").headers
        self.assertEqual(self.ask("HEAD", "/captures/abc1").headers, expected)

    def test_nowhere(self) -> None:
        """Other paths, and unknown captures, get 404."""
        for path in "/ /captures/ /captures/zz /captures/a/b /captures/.. /%00 *".split():
            response = self.ask("GET", path)
            self.assertEqual(response.code, 404, path)
            self.assertEqual(response.content["type"], "about:blank")

    def test_method(self) -> None:
        """An unsupported method gets 405, with those that are supported."""
        for method, path, allowed in (
            ("DELETE", "/captures", "GET, HEAD, POST"),
            ("POST", "/captures/abc1", "GET, HEAD, DELETE"),
            ("OPTIONS", "/captures", "GET, HEAD, POST"),
        ):
            response = self.ask(method, path)
            self.assertEqual((response.code, response.headers["allow"]), (405, allowed))
        self.assertEqual(self.sink.submitted, [])

    def test_state_that_is_no_json(self) -> None:
        """A state that can't be put in JSON is an internal error."""
        self.begin_capture("bad", link_type=float("nan"))
        self.assertEqual(self.ask("GET", "/captures/bad").code, 500)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)


class LifeTests(HTTPTestCase):
    """The start and the stop."""

    def test_listening(self) -> None:
        """C{listening} fires with the address."""
        assert self.source.listening is not None
        self.assertEqual(self.successResultOf(self.source.listening), ADDRESS)

    def test_stop(self) -> None:
        """The port is closed, then the connections; the last one is aborted."""
        polite, stubborn = self.connect(), self.connect(stubborn=True)
        stopped = self.source.stopService()
        self.assertFalse(self.endpoint.port.is_open)
        self.assertTrue(polite.is_lost)
        self.assertNoResult(stopped)
        self.assertIsNone(self.endpoint.factory.buildProtocol(ADDRESS))
        self.clock.advance(CLOSE_SECONDS)
        self.assertTrue(stubborn.aborted)
        self.successResultOf(stopped)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_start_again(self) -> None:
        """A stopped source can be started again."""
        self.successResultOf(self.source.stopService())
        self.source.startService()
        self.assertEqual(self.ask("GET", "/captures/abc1").code, 200)

    def test_taken(self) -> None:
        """If the address is in use, the start fails, and the endpoint is logged."""
        self.successResultOf(self.source.stopService())
        self.endpoint.answer = defer.fail(error.CannotListenError("127.0.0.1", 8480, OSError(98, "in use")))
        refused = self.assertRaises(SettingsError, self.source.startService)
        self.assertTrue(
            str(refused).startswith('http.listen = "tcp:8480": must be an endpoint that can be listened on (')
        )
        critical = [event for event in self.events if event["log_level"] == LogLevel.critical]
        self.assertEqual([event["endpoint"] for event in critical], ["tcp:8480"])
        self.assertIn("in use", critical[0]["problem"])
        assert self.source.listening is not None
        self.assertIsNone(self.successResultOf(self.source.listening))

    def test_taken_later(self) -> None:
        """If listening fails later, C{listening} fires with L{None}, and it is logged."""
        self.successResultOf(self.source.stopService())
        self.endpoint.answer = defer.Deferred()
        self.source.startService()
        assert self.source.listening is not None
        self.assertNoResult(self.source.listening)
        self.endpoint.answer.errback(OSError("no"))
        self.assertIsNone(self.successResultOf(self.source.listening))
        self.assertEqual([event["log_level"] for event in self.events], [LogLevel.critical])
        self.successResultOf(self.source.stopService())

    def test_stop_while_opening(self) -> None:
        """A stop before it listens is no problem."""
        self.successResultOf(self.source.stopService())
        self.endpoint.answer = defer.Deferred()
        self.source.startService()
        self.successResultOf(self.source.stopService())
        self.assertEqual([event for event in self.events if event["log_level"] >= LogLevel.warn], [])


class EndpointTests(unittest.SynchronousTestCase):
    """L{http_endpoint} determines the mode of a unix socket."""

    def mode_of(self, description: str) -> int:
        """The mode that a socket would get."""
        reactor = MemoryReactor()
        http_endpoint(reactor, description).listen(None)  # type: ignore[arg-type]
        [(_path, _factory, _backlog, mode, _lock)] = reactor.unixServers
        return int(mode)

    def test_mode(self) -> None:
        """It is 660, unless the description has one, with or without its name."""
        self.assertEqual(self.mode_of("unix:/run/pcapsvc.sock"), 0o660)
        self.assertEqual(self.mode_of(r"unix:/run/a\:b.sock:backlog=5"), 0o660)
        self.assertEqual(self.mode_of("unix:address=/run/a.sock"), 0o660)
        self.assertEqual(self.mode_of("unix:/run/a.sock:mode=600"), 0o600)
        self.assertEqual(self.mode_of("unix:/run/a.sock:600"), 0o600)

    def test_tcp(self) -> None:
        """Other descriptions are passed to Twisted."""
        reactor = MemoryReactor()
        http_endpoint(reactor, "tcp:8480:interface=127.0.0.1").listen(None)  # type: ignore[arg-type]
        self.assertEqual(reactor.tcpServers[0][0], 8480)
