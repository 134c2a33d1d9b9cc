"""Captures to URLs that requests supply: which are refused, and what is connected to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionRefusedError, DNSLookupError
from twisted.internet.interfaces import IHostnameResolver, IHostResolution
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from pcapsvc.core.allowed_hosts import parse_pattern
from pcapsvc.core.artifact import Artifact
from pcapsvc.core.errors import DestinationError
from pcapsvc.core.public_address import is_public
from pcapsvc.core.put_url import parse_put_url
from pcapsvc.destinations.puturl.answer import check_answer
from pcapsvc.destinations.puturl.destination import PutUrlDestination, headers_of
from pcapsvc.interfaces.delivery import IDestination
from pcapsvc.net.checked_endpoint import AddressRefused, checked_endpoint
from pcapsvc.net.http_client import Response
from pcapsvc.testing import run_now
from tests.unit.contents import MemfdContent, make_artifact


@implementer(IHostnameResolver)
class Resolver:
    """
    A resolver whose answers are given in turn; the last one stays.

    @ivar asked: the names.
    """

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []
        self.cancelled = 0
        self.hangs = False

    def resolveHostName(
        self, receiver: Any, hostName: str, portNumber: int = 0, *rest: Any, **more: Any
    ) -> IHostResolution:
        self.asked.append(hostName)

        @implementer(IHostResolution)
        class Resolution:
            name = hostName

            def cancel(inner) -> None:
                self.cancelled += 1
                receiver.resolutionComplete()

        resolution = Resolution()
        receiver.resolutionBegan(resolution)
        if self.hangs:
            return resolution
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        for text in answer:
            kind = IPv6Address if ":" in text else IPv4Address
            receiver.addressResolved(kind("TCP", text, portNumber))
        receiver.resolutionComplete()
        return resolution


def reactor_with(*answers: Sequence[str]) -> Any:
    """A reactor that connects to nothing, and remembers to what it would."""
    reactor = MemoryReactorClock()
    reactor.nameResolver = Resolver(*answers)  # type: ignore[assignment]
    return reactor


def connections(reactor: Any) -> list[tuple[str, int]]:
    """To what it was to connect."""
    return [(host, port) for host, port, *_ in reactor.tcpClients]


class CheckedEndpointTests(SynchronousTestCase):
    """L{checked_endpoint}."""

    def connect(self, reactor: Any, *, allowed: Any = is_public) -> Deferred[Any]:
        async def connected() -> Any:
            endpoint = await checked_endpoint(reactor, "store.example", 8443, allowed)
            return await endpoint.connect(Factory())

        return Deferred.fromCoroutine(connected())

    def test_checked(self) -> None:
        """The connection goes to an address that was looked up, which happens once."""
        reactor = reactor_with(["1.1.1.1"], ["127.0.0.1"])
        self.connect(reactor)
        self.assertEqual(connections(reactor), [("1.1.1.1", 8443)])
        self.assertEqual(reactor.nameResolver.asked, ["store.example"])

    def test_refused(self) -> None:
        """One address that is not allowed is enough for none to be used."""
        for answer in (["127.0.0.1"], ["1.1.1.1", "169.254.169.254"], ["2606:4700::1", "::ffff:127.0.0.1"]):
            reactor = reactor_with(answer)
            error = self.failureResultOf(self.connect(reactor), AddressRefused)
            self.assertEqual(str(error.value), "")
            self.assertEqual(connections(reactor), [])

    def test_changes(self) -> None:
        """If the name means something else by the time of the connection, that is not connected to."""
        reactor = reactor_with(["1.1.1.1", "2606:4700::1"], ["127.0.0.1"], ["169.254.169.254"])
        connected = self.connect(reactor)
        reactor.advance(1)
        self.assertEqual(connections(reactor), [("1.1.1.1", 8443), ("2606:4700::1", 8443)])
        for _, _, factory, *_ in reactor.tcpClients:
            factory.clientConnectionFailed(None, Failure(ConnectionRefusedError()))
        reactor.advance(1)
        self.failureResultOf(connected, ConnectionRefusedError)
        self.assertEqual(len(reactor.nameResolver.asked), 1)

    def test_not_found(self) -> None:
        """A name without an address is not found."""
        reactor = reactor_with([])
        self.failureResultOf(self.connect(reactor), DNSLookupError)

    def test_cancelled(self) -> None:
        """A look-up that is cancelled is given up."""
        reactor = reactor_with([])
        reactor.nameResolver.hangs = True
        connected = self.connect(reactor)
        self.assertNoResult(connected)
        connected.cancel()
        self.failureResultOf(connected, CancelledError)
        self.assertEqual(reactor.nameResolver.cancelled, 1)


class PutUrlDestinationTests(SynchronousTestCase):
    """L{PutUrlDestination}."""

    def setUp(self) -> None:
        self.content = MemfdContent(b"pcap")
        self.addCleanup(self.content.close)

    def make(self, reactor: Any, *patterns: str) -> PutUrlDestination:
        return PutUrlDestination(
            reactor,
            run_in_thread=run_now,
            patterns=[*map(parse_pattern, patterns)],
            insecure=True,
            ca_file=None,
            node="web1",
        )

    def artifact(self, url: str) -> Artifact:
        return make_artifact(self.content, destination="puturl", puturl=url)

    def test_interface(self) -> None:
        """It is a destination, and only for captures whose requests have a URL."""
        destination = self.make(reactor_with([]), "a.example", "*.example", "*")
        self.assertTrue(verifyObject(IDestination, destination))
        self.assertEqual(destination.name, "puturl")
        self.assertEqual(destination.routes, ("a.example", "*.example", "*"))
        for options, route in (
            ({}, None),
            ({"puturl": ""}, None),
            ({"puturl": "https://a.example/x"}, "a.example"),
            ({"puturl": "https://b.example/x"}, "*.example"),
            ({"puturl": "https://b/x"}, "*"),
            ({"puturl": "https://b:1/x"}, "a.example"),
            ({"puturl": "nonsense"}, "a.example"),
            ({"puturl": 5}, "a.example"),
        ):
            self.assertEqual(destination.route(options), route)
            is_wrong = options.get("puturl") in ("https://b:1/x", "nonsense", 5)
            self.assertEqual(bool([*destination.check(options)]), is_wrong, options)

    def test_refused(self) -> None:
        """An address that is not public is an error that doesn't say which it is, and not retryable."""
        reactor = reactor_with(["10.1.2.3"])
        destination = self.make(reactor, "*", "10.9.9.9")
        stored = destination.store(self.artifact("http://store.example/a?sig=s3cr3t"))
        error = self.failureResultOf(stored, DestinationError).value
        self.assertFalse(error.retryable)
        self.assertNotIn("10.1.2.3", str(error))
        self.assertIn("http://store.example: the host has an address that is not public", str(error))
        self.assertEqual(connections(reactor), [])

    def test_not_found(self) -> None:
        """A host that is not found may be found later."""
        stored = self.make(reactor_with([]), "*").store(self.artifact("http://store.example/a?sig=s3cr3t"))
        error = self.failureResultOf(stored, DestinationError).value
        self.assertTrue(error.retryable)
        self.assertIn("http://store.example: ", str(error))
        self.assertIn("the host was not found", str(error))

    def test_looks_up_apart(self) -> None:
        """Hosts are looked up in threads of their pattern: others must not wait for their name servers."""
        asked: list[str] = []

        def run(name: str) -> Callable[..., Deferred[Any]]:
            def run_in_thread(*_: Any) -> Deferred[Any]:
                asked.append(name)
                return Deferred()

            return run_in_thread

        destination = PutUrlDestination(
            reactor_with(["1.1.1.1"]),
            run_in_thread=run_now,
            look_up_in_thread={name: run(name) for name in ("*.a", "*.b")},
            patterns=[*map(parse_pattern, ("*.a", "*.b"))],
            insecure=True,
            ca_file=None,
            node="web1",
        )
        for host in ("x.b", "x.a"):
            stored = destination.store(self.artifact(f"http://{host}/file"))
            self.assertNoResult(stored)
            stored.cancel()
            self.failureResultOf(stored, CancelledError)
        self.assertEqual(asked, ["*.b", "*.a"])

    def test_foreign_words(self) -> None:
        """What a library says is passed on, unless a part of the query is in it."""
        url = "http://store.example/a?X-Amz-SignedHeaders=host&X-Amz-Signature=s3cr3ts3cr3t"
        for said, expected in (
            ("no route to host", "http://store.example: no route to host"),
            ("bad: S3CR3TS3CR3T", "http://store.example: the connection failed"),
            (f"bad: {url}", "http://store.example: bad: http://store.example/a?<secret>"),
        ):
            reactor = reactor_with(["1.1.1.1"])
            stored = self.make(reactor, "*").store(self.artifact(url))
            reactor.advance(0)
            [(_, _, factory, *_)] = reactor.tcpClients
            factory.clientConnectionFailed(None, Failure(OSError(said)))
            reactor.advance(1)
            self.assertEqual(str(self.failureResultOf(stored, DestinationError).value), expected)
        self.assertTrue(self.content.all_closed)

    def test_headers(self) -> None:
        """The headers are those that signers know of."""
        base = "https://host/a"
        for url, names in (
            (base, {"Host", "Content-Type"}),
            (f"{base}?X-Amz-SignedHeaders=host&X-Amz-Signature=1", {"Host", "Content-Type"}),
            (f"{base}?AWSAccessKeyId=a&Signature=b&Expires=1", {"Host"}),
            (f"{base}?GoogleAccessId=a&Signature=b&Expires=1", {"Host"}),
            (f"{base}?sv=2024-11-04&sig=1", {"Host", "Content-Type", "x-ms-blob-type"}),
        ):
            self.assertEqual(set(headers_of(parse_put_url(url), "a/b")), names)


class AnswerTests(SynchronousTestCase):
    """What a refusal of a service means."""

    def test_kms(self) -> None:
        """If KMS has too much to do, that passes, whatever the status is. If it has no key, it doesn't."""
        for code, words, passes in (
            ("KMS.ThrottlingException", "try again later (KMS.ThrottlingException)", True),
            ("KMS.DisabledException", "the key with which KMS encrypts there can't be used", False),
        ):
            response = Response(
                code=400, headers={}, asked_seconds=None, body=f"<Error><Code>{code}</Code></Error>".encode()
            )
            error = self.assertRaises(DestinationError, check_answer, response, md5=b"", has_sent_all=True)
            self.assertIn(words, str(error))
            self.assertEqual(error.retryable, passes)
