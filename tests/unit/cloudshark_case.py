"""A CloudShark server in the same process that answers as the test says."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from multipart import MultipartParser, parse_options_header
from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import eventAsText, globalLogPublisher
from twisted.trial.unittest import TestCase
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import Site

from pcapsvc.core.errors import DestinationError
from pcapsvc.destinations.cloudshark.destination import CloudShark
from pcapsvc.testing import run_now
from tests.unit.contents import MemfdContent, make_artifact

TOKEN = "s3cr3t/To%ken +ü"
TOKEN_IN_URL = b"s3cr3t%2FTo%25ken%20%2B%C3%BC"


class Upload(Resource):
    """Answers every request as the test says, and keeps it."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.search: Callable[[Request], Any] = lambda request: {"captures": []}
        self.answer: Callable[[Request], Any] = lambda request: {"filename": "x", "id": "f00"}
        self.requests: list[Request] = []
        self.parts: dict[str, Any] = {}

    def render(self, request: Request) -> bytes | int:
        self.requests.append(request)
        if request.method == b"GET":
            return self.encoded(self.search(request))
        _, options = parse_options_header(request.getHeader("content-type"))
        length = int(request.getHeader("content-length"))
        form = MultipartParser(request.content, options["boundary"], content_length=length, strict=True)
        self.parts = {part.name: part for part in form}
        return self.encoded(self.answer(request))

    def encoded(self, answer: Any) -> bytes | int:
        if isinstance(answer, dict):
            return json.dumps(answer).encode()
        return answer  # type: ignore[no-any-return]


def refusal(code: int, *exceptions: Any) -> Callable[[Request], Any]:
    def answer(request: Request) -> Any:
        request.setResponseCode(code)
        return {"status": code, "exceptions": list(exceptions)}

    return answer


class Ssh(Protocol):
    """Speaks before it is spoken to."""

    def connectionMade(self) -> None:
        self.transport.write(b"SSH-2.0-x\r\n")  # type: ignore[union-attr]
        self.transport.loseConnection()  # type: ignore[union-attr]


class QuietSite(Site):
    """A site that logs no requests, whose paths hold the token."""

    noisy = False

    def log(self, request: Request) -> None:
        pass


class CloudSharkCase(TestCase):
    """With a server on the loopback, and a look at all that is logged."""

    def setUp(self) -> None:
        self.server = Upload()
        self.port = reactor.listenTCP(0, QuietSite(self.server), interface="127.0.0.1")
        self.addCleanup(self.port.stopListening)
        self.content = MemfdContent(os.urandom(300_000))
        self.addCleanup(self.content.close)
        self.logged: list[str] = []
        observer = lambda event: self.logged.append(eventAsText(event) + repr(event))  # noqa: E731
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def make(self, **changes: Any) -> CloudShark:
        values: dict[str, Any] = {
            "scheme": "http",
            "host": "127.0.0.1",
            "port": self.port.getHost().port,
            "token": TOKEN,
            "timeout_seconds": 10,
        }
        return CloudShark(reactor, run_in_thread=run_now, **{**values, **changes})

    def listen(self, protocol: type[Protocol]) -> int:
        """The port of a server that speaks a protocol of its own."""
        self.connections: list[Protocol] = []

        class Listener(Factory):
            noisy = False

            def buildProtocol(inner, address: object) -> Protocol:
                self.connections.append(protocol())
                return self.connections[-1]

        port = reactor.listenTCP(0, Listener(), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        number: int = port.getHost().port
        return number

    async def refused(self, *, tags: str = "", **changes: Any) -> DestinationError:
        destination = self.make(**changes)
        error = await self.assertFailure(destination.store(make_artifact(self.content)), DestinationError)
        assert isinstance(error, DestinationError)
        self.assertNoToken(str(error), repr(error))
        self.assertTrue(self.content.all_closed)
        return error

    def assertNoToken(self, *texts: str) -> None:
        for text in (*texts, *self.logged):
            for form in (TOKEN, TOKEN_IN_URL.decode(), TOKEN_IN_URL.decode().lower(), "s3cr3t"):
                self.assertNotIn(form, text)
