"""The HTTP server and its tree of resources, without a network."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet import defer, error
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial import unittest
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from twisted.web.resource import Resource as TwistedResource
from zope.interface import implementer

from pcapsvc.core.role import ALL_ROLES, Role
from pcapsvc.net.http_resource import Answer, AnswerCut, HTTPProblem, Resource
from pcapsvc.net.http_server import ANSWER_SECONDS, CLOSE_SECONDS, HTTPServer
from tests.unit.http_case import ADDRESS, Response, Transport


class Slow(Resource):
    """
    A resource whose answers take their time.

    @ivar waiting: the answers that are to come.
    """

    allowedMethods = (b"GET", b"HEAD", b"POST")

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[defer.Deferred[Answer]] = []

    def render_GET(self, request: Any) -> defer.Deferred[Answer]:
        self.waiting.append(defer.Deferred())
        return self.waiting[-1]

    async def render_POST(self, request: Any) -> Answer:
        body = request.content.read().decode()
        answer = await self.render_GET(request)
        return Answer.json({**json.loads(answer.body), "body": body})


class Stream(Resource):
    """A resource that writes a stream until C{ended} fires; a registered producer is paused and resumed."""

    allowedMethods = (b"GET",)

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.request: Any = None
        self.ended: defer.Deferred[None] = defer.Deferred()
        self.lost: defer.Deferred[None] | None = None

    def pauseProducing(self) -> None:
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        self.calls.append("resume")

    def stopProducing(self) -> None:
        self.calls.append("stop")

    async def render_GET(self, request: Any) -> None:
        self.request = request
        self.lost = request.notifyFinish()
        request.setHeader("Content-Type", "text/event-stream")
        request.registerProducer(self, True)
        request.write(b"data: 1\n\n")
        await self.ended
        request.unregisterProducer()


class Twisteds(TwistedResource):
    """A resource of Twisted's kind, that writes its answer later."""

    def render_GET(self, request: Any) -> Any:
        self.request = request
        return 1 if b"later" in request.args else b",".join(request.args.get(b"word", [b"now"]))


class Broken(Resource):
    """A resource that fails after it began to write."""

    allowedMethods = (b"GET",)

    def render_GET(self, request: Any) -> None:
        request.write(b"half")
        raise HTTPProblem(500, "no")


class ServerTestCase(unittest.SynchronousTestCase):
    """A server, and clients for it."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.root = Resource()
        self.slow, self.stream, self.twisteds = Slow(), Stream(), Twisteds()
        self.root.putChild(b"slow", self.slow)
        self.root.putChild(b"stream", self.stream)
        self.root.putChild(b"twisted", self.twisteds)
        self.root.putChild(b"broken", Broken())
        self.server = HTTPServer(self.clock, self.root, check=self.check, max_body_bytes=100)
        self.server.open()
        self.refused: set[bytes] = set()
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def check(self, request: Any) -> frozenset[Role]:
        """Admit a request."""
        if request.path in self.refused:
            raise HTTPProblem(403, "Not you.")
        return ALL_ROLES

    def ask(self, path: str, *, method: str = "GET", body: bytes = b"", stubborn: bool = False) -> Transport:
        """A client that has sent a request."""
        transport = Transport(self.clock, ADDRESS, stubborn)
        transport.protocol = self.server.buildProtocol(ADDRESS)
        transport.protocol.makeConnection(transport)
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        transport.send(head.encode() + body)
        return transport

    def close(self) -> defer.Deferred[None]:
        """Stop the server."""
        return defer.Deferred.fromCoroutine(self.server.close())


class AnswerTests(ServerTestCase):
    """An answer may come later."""

    def test_later(self) -> None:
        """A Deferred or a coroutine answers when it fires."""
        for method, body in (("GET", {"a": 1}), ("POST", {"a": 1, "body": "x"})):
            transport = self.ask("/slow", method=method, body=b"x" if method == "POST" else b"")
            self.assertEqual(transport.value(), b"")
            self.slow.waiting.pop().callback(Answer.json({"a": 1}))
            response = Response(transport.value())
            self.assertEqual((response.code, response.content), (200, body))
            self.assertFalse(transport.is_lost)

    def test_problem_later(self) -> None:
        """It may fail with a problem, or with an internal error."""
        transport = self.ask("/slow")
        self.slow.waiting.pop().errback(HTTPProblem(429, "Slowly.", headers={"Retry-After": "3"}, more=[1]))
        response = Response(transport.value())
        self.assertEqual((response.code, response.headers["retry-after"]), (429, "3"))
        self.assertEqual(
            response.content,
            {
                "type": "about:blank",
                "title": "Too Many Requests",
                "status": 429,
                "detail": "Slowly.",
                "more": [1],
            },
        )
        transport = self.ask("/slow")
        self.slow.waiting.pop().errback(ZeroDivisionError("secret"))
        self.assertEqual(Response(transport.value()).code, 500)
        self.assertNotIn(b"secret", transport.value())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_no_guesses(self) -> None:
        """No browser may guess the type of an answer, or of an error, which may have words of strangers."""
        self.refused.add(b"/refused")
        for path in ("/slow", "/refused", "/nowhere"):
            transport = self.ask(path)
            if path == "/slow":
                self.slow.waiting.pop().callback(Answer.json({}))
            self.assertEqual(Response(transport.value()).headers["x-content-type-options"], "nosniff", path)

    def test_no_time_limit(self) -> None:
        """A slow answer doesn't count as a slow client."""
        transport = self.ask("/slow")
        self.clock.advance(3600)
        self.slow.waiting.pop().callback(Answer.json({}))
        self.assertEqual(Response(transport.value()).code, 200)

    def test_one_at_a_time(self) -> None:
        """The next request on a connection waits for the answer to the previous one."""
        transport = self.ask("/slow")
        transport.send(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self.assertEqual(len(self.slow.waiting), 1)
        self.slow.waiting.pop().callback(Answer.json({"number": 1}))
        self.clock.advance(0)
        self.slow.waiting.pop().callback(Answer.json({"number": 2}))
        first = Response(transport.value())
        self.assertEqual(first.content, {"number": 1})
        self.assertEqual(Response(first.rest).content, {"number": 2})

    def test_client_gone(self) -> None:
        """A client that disconnects before the answer cancels nothing, and nothing is logged about it."""
        for result in (Answer.json({}), HTTPProblem(404, "no")):
            transport = self.ask("/slow")
            transport.lose(error.ConnectionLost())
            waiting = self.slow.waiting.pop()
            self.assertFalse(waiting.called)
            if isinstance(result, Answer):
                waiting.callback(result)
            else:
                waiting.errback(result)
            self.assertEqual(transport.value(), b"")
        self.assertEqual(self.events, [])
        self.successResultOf(self.close())

    def test_not_admitted(self) -> None:
        """A request that isn't admitted reaches no resource."""
        self.refused.add(b"/slow")
        self.assertEqual(Response(self.ask("/slow").value()).code, 403)
        self.assertEqual(self.slow.waiting, [])

    def test_bound_of_bodies(self) -> None:
        """The longest body is configurable."""
        self.assertEqual(Response(self.ask("/slow", method="POST", body=bytes(101)).value()).code, 413)
        self.ask("/slow", method="POST", body=bytes(100))
        self.assertEqual(len(self.slow.waiting), 1)


@implementer(IBodyProducer)
class Pieces:
    """
    A body that a test writes piece by piece.

    @ivar calls: what the server has called.
    @ivar ended: what the server waits for.
    """

    def __init__(self, length: Any) -> None:
        self.length = length
        self.calls: list[str] = []
        self.consumer: Any = None
        self.ended: defer.Deferred[None] = defer.Deferred()

    def startProducing(self, consumer: Any) -> defer.Deferred[None]:
        self.calls.append("start")
        self.consumer = consumer
        return self.ended

    def pauseProducing(self) -> None:
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        self.calls.append("resume")

    def stopProducing(self) -> None:
        self.calls.append("stop")


class ProducedTests(ServerTestCase):
    """The body of an answer may be produced piece by piece."""

    def answered(self, pieces: Pieces, *, method: str = "GET", stubborn: bool = False) -> Transport:
        """A client that gets such an answer."""
        transport = self.ask("/slow", method=method, stubborn=stubborn)
        self.slow.waiting.pop().callback(Answer(media_type="text/plain", body=pieces))
        return transport

    def test_length(self) -> None:
        """With a known length it is sent as it is; the connection then serves the next request."""
        pieces = Pieces(5)
        transport = self.answered(pieces)
        self.assertIn(b"Content-Length: 5\r\n", transport.value())
        pieces.consumer.write(b"ab")
        pieces.consumer.write(b"cde")
        pieces.ended.callback(None)
        self.assertTrue(transport.value().endswith(b"\r\n\r\nabcde"))
        self.assertEqual(pieces.calls, ["start", "stop"])
        transport.send(b"GET /twisted HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self.assertTrue(transport.value().endswith(b"now"))

    def test_no_length(self) -> None:
        """Without one, the head is sent at once, and the body in chunks, of which the last is empty."""
        pieces = Pieces(UNKNOWN_LENGTH)
        transport = self.answered(pieces)
        self.assertIn(b"Transfer-Encoding: chunked\r\n", transport.value())
        self.assertTrue(transport.value().endswith(b"\r\n\r\n"))
        pieces.consumer.write(b"ab")
        transport.producer.pauseProducing()
        transport.producer.resumeProducing()
        pieces.ended.callback(None)
        self.assertTrue(transport.value().endswith(b"2\r\nab\r\n0\r\n\r\n"))
        self.assertEqual(pieces.calls, ["start", "pause", "resume", "stop"])

    def test_head(self) -> None:
        """Nothing is produced for HEAD."""
        pieces = Pieces(5)
        transport = self.answered(pieces, method="HEAD")
        self.assertTrue(transport.value().endswith(b"\r\n\r\n"))
        self.assertIn(b"Content-Length: 5\r\n", transport.value())
        self.assertEqual(pieces.calls, ["stop"])

    def test_gone_before(self) -> None:
        """If the client is gone before the answer, nothing is produced."""
        pieces = Pieces(5)
        transport = self.ask("/slow")
        transport.lose(error.ConnectionLost())
        self.slow.waiting.pop().callback(Answer(media_type="text/plain", body=pieces))
        self.assertEqual(pieces.calls, ["stop"])
        self.assertEqual(self.server.answering, set())

    def test_gone_meanwhile(self) -> None:
        """If the client goes, nothing more is produced, and what was to end has ended."""
        pieces = Pieces(5)
        transport = self.answered(pieces)
        transport.lose(error.ConnectionLost())
        self.assertEqual(set(pieces.calls), {"start", "stop"})
        self.assertEqual(self.server.answering, set())
        pieces.ended.callback(None)

    def test_cut(self) -> None:
        """If it can't go on, the connection is aborted. What must not happen is logged."""
        for problem, logged in ((AnswerCut(), 0), (ZeroDivisionError(), 1)):
            pieces = Pieces(5)
            transport = self.answered(pieces)
            pieces.ended.errback(problem)
            self.assertTrue(transport.aborted)
            self.assertEqual(pieces.calls, ["start", "stop"])
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), logged)

    def test_close(self) -> None:
        """A stop of the server doesn't wait for it, and doesn't end it as if it were whole."""
        pieces = Pieces(UNKNOWN_LENGTH)
        transport = self.answered(pieces, stubborn=True)
        closed = self.close()
        self.assertEqual(set(pieces.calls), {"start", "stop"})
        self.assertTrue(transport.disconnecting)
        self.assertFalse(transport.value().endswith(b"0\r\n\r\n"))
        self.clock.advance(CLOSE_SECONDS)
        self.successResultOf(closed)


class StreamTests(ServerTestCase):
    """A resource may write the answer by itself."""

    def test_stream(self) -> None:
        """What it writes is sent as it comes, and the answer ends when it returns."""
        transport = self.ask("/stream")
        self.assertIn(b"\r\n\r\n9\r\ndata: 1\n\n\r\n", transport.value())
        self.stream.request.write(b"more")
        self.stream.ended.callback(None)
        self.assertTrue(transport.value().endswith(b"4\r\nmore\r\n0\r\n\r\n"))
        self.assertFalse(transport.is_lost)

    def test_back_pressure(self) -> None:
        """A client that reads slowly pauses the producer."""
        transport = self.ask("/stream")
        transport.producer.pauseProducing()
        transport.producer.resumeProducing()
        self.assertEqual(self.stream.calls, ["pause", "resume"])

    def test_client_gone(self) -> None:
        """The resource can find out that the client is gone, and its end does no harm then."""
        transport = self.ask("/stream")
        transport.lose(error.ConnectionLost())
        assert self.stream.lost is not None
        self.failureResultOf(self.stream.lost, error.ConnectionLost)
        self.stream.ended.callback(None)
        self.assertEqual(self.server.answering, set())

    def test_failed_halfway(self) -> None:
        """An answer that fails halfway is cut off, so that it isn't taken for a whole one."""
        transport = self.ask("/broken")
        self.assertTrue(transport.aborted)
        self.assertTrue(transport.value().endswith(b"4\r\nhalf\r\n"))

    def test_resources_of_twisted(self) -> None:
        """A resource of Twisted's own kind is served as it is, and may answer later."""
        transport = self.ask("/twisted")
        self.assertTrue(transport.value().endswith(b"Content-Length: 3\r\n\r\nnow"), transport.value())
        self.assertTrue(self.ask("/twisted?word=a&word=%C3%A9").value().endswith(b"\r\n\r\na,\xc3\xa9"))
        transport = self.ask("/twisted?later=")
        self.assertEqual(transport.value(), b"")
        self.twisteds.request.write(b"later")
        self.twisteds.request.finish()
        self.assertTrue(transport.value().endswith(b"later\r\n0\r\n\r\n"))

    def test_method_that_twisted_refuses(self) -> None:
        """Its refusal of a method is a problem document, too."""
        response = Response(self.ask("/twisted", method="PUT").value())
        self.assertEqual((response.code, response.content["status"]), (405, 405))
        self.assertIn("GET", response.headers["allow"])


class CloseTests(ServerTestCase):
    """A stop lets pending answers be sent, for a bounded time."""

    def test_answer_in_time(self) -> None:
        """An answer that comes in time is sent, and the connection closes then."""
        transport = self.ask("/slow")
        idle = self.ask("/nowhere")
        closed = self.close()
        self.assertTrue(idle.is_lost)
        self.assertFalse(transport.is_lost)
        self.clock.advance(ANSWER_SECONDS / 2)
        self.assertNoResult(closed)
        self.slow.waiting.pop().callback(Answer.json({}))
        self.assertEqual(Response(transport.value()).code, 200)
        self.assertTrue(transport.is_lost)
        self.successResultOf(closed)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_answer_too_late(self) -> None:
        """A later answer is not waited for, and does no harm when it comes."""
        transport, stubborn = self.ask("/slow"), self.ask("/slow", stubborn=True)
        closed = self.close()
        self.clock.advance(ANSWER_SECONDS)
        self.assertTrue(transport.is_lost)
        self.assertNoResult(closed)
        self.clock.advance(CLOSE_SECONDS)
        self.assertTrue(stubborn.aborted)
        self.successResultOf(closed)
        for waiting in self.slow.waiting:
            waiting.callback(Answer.json({}))
        self.assertEqual((transport.value(), stubborn.value()), (b"", b""))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stream(self) -> None:
        """A stream is ended at once."""
        transport = self.ask("/stream")
        closed = self.close()
        self.assertTrue(transport.is_lost)
        assert self.stream.lost is not None
        self.failureResultOf(self.stream.lost, error.ConnectionDone)
        self.stream.ended.callback(None)
        self.successResultOf(closed)
        self.assertEqual(self.clock.getDelayedCalls(), [])
