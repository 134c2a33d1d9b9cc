"""Looking up host names."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.interfaces import IHostnameResolver, IHostResolution, IResolutionReceiver
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from pcapsvc.net.names import MOST_ADDRESSES, NameLookups, ThreadedResolver
from pcapsvc.testing import run_now
from pcapsvc.threads import NoThread, NotRunning


@implementer(IResolutionReceiver)
class _Receiver:
    def __init__(self) -> None:
        self.began: list[Any] = []
        self.addresses: list[Any] = []
        self.completed = 0

    def resolutionBegan(self, resolutionInProgress: Any) -> None:
        self.began.append(resolutionInProgress)

    def addressResolved(self, address: Any) -> None:
        self.addresses.append(address)

    def resolutionComplete(self) -> None:
        self.completed += 1


class NameLookupsTests(SynchronousTestCase):
    """L{NameLookups}."""

    def test_reactor(self) -> None:
        """The reactor's resolver is another one while the service runs; a clock has none."""
        before = reactor.nameResolver
        service = NameLookups(reactor, run_now)
        self.assertIs(reactor.nameResolver, before)
        service.startService()
        self.assertIsInstance(reactor.nameResolver, ThreadedResolver)
        service.stopService()
        self.assertIs(reactor.nameResolver, before)
        without = NameLookups(Clock(), run_now)
        without.startService()
        without.stopService()


class ThreadedResolverTests(SynchronousTestCase):
    """L{ThreadedResolver}."""

    def look_up(self, name: str, run: Callable[..., Any] = run_now, **kwargs: Any) -> _Receiver:
        receiver = _Receiver()
        resolver = ThreadedResolver(run)
        self.assertTrue(verifyObject(IHostnameResolver, resolver))
        resolution = resolver.resolveHostName(receiver, name, 80, **kwargs)
        self.assertTrue(verifyObject(IHostResolution, resolution))
        self.assertEqual((receiver.began, resolution.name), ([resolution], name))
        return receiver

    def test_many(self) -> None:
        """Of a name with thousands of addresses, the first ones of the wanted types are used."""
        found = [
            (family, socket.SOCK_STREAM, 6, "", address)
            for number in range(2000)
            for family, address in (
                (socket.AF_INET6, (f"2001:db8::{number:x}", 80, 0, 0)),
                (socket.AF_INET, (f"192.0.2.{number % 256}", 80)),
            )
        ]
        self.patch(socket, "getaddrinfo", lambda *_: found)
        both = self.look_up("a.example").addresses
        self.assertEqual(len(both), MOST_ADDRESSES)
        self.assertEqual(both[0], IPv6Address("TCP", "2001:db8::0", 80))
        one = self.look_up("a.example", addressTypes=[IPv4Address]).addresses
        self.assertEqual(
            one, [IPv4Address("TCP", f"192.0.2.{number}", 80) for number in range(MOST_ADDRESSES)]
        )

    def test_not_begun(self) -> None:
        """A look-up that is cancelled while it waits for a thread is not begun."""
        waiting: list[Callable[[], Any]] = []
        looked_up: list[Any] = []
        self.patch(socket, "getaddrinfo", lambda *arguments: looked_up.append(arguments) or [])

        def run(function: Callable[[], Any]) -> Deferred[Any]:
            waiting.append(function)
            return Deferred()

        receivers = [self.look_up("a.example", run) for _ in range(2)]
        receivers[0].began[0].cancel()
        self.assertEqual([receiver.completed for receiver in receivers], [1, 0])
        for function in waiting:
            function()
        self.assertEqual(len(looked_up), 1)

    def test_found(self) -> None:
        """All addresses of the wanted types are found, in order."""
        found = [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 80, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80)),
        ]
        asked: list[Any] = []

        def getaddrinfo(*arguments: Any) -> Any:
            asked.append(arguments)
            return found

        self.patch(socket, "getaddrinfo", getaddrinfo)
        both = self.look_up("a.example")
        self.assertEqual(
            both.addresses, [IPv6Address("TCP", "2001:db8::1", 80), IPv4Address("TCP", "192.0.2.1", 80)]
        )
        self.assertEqual(both.completed, 1)
        one = self.look_up("a.example", addressTypes=[IPv4Address], transportSemantics="UDP")
        self.assertEqual(one.addresses, [IPv4Address("UDP", "192.0.2.1", 80)])
        self.assertEqual(
            asked,
            [
                (b"a.example", 80, socket.AF_UNSPEC, socket.SOCK_STREAM),
                (b"a.example", 80, socket.AF_INET, socket.SOCK_DGRAM),
            ],
        )
        asked.clear()
        self.look_up("bücher.example")
        self.assertEqual([name for name, *_ in asked], ["bücher.example"])

    def test_addresses(self) -> None:
        """An address needs no thread: it doesn't wait behind look-ups that hang."""
        hang = lambda *_: Deferred()  # noqa: E731
        self.assertEqual(self.look_up("192.0.2.1", hang).addresses, [IPv4Address("TCP", "192.0.2.1", 80)])
        self.assertEqual(self.look_up("::1", hang).addresses, [IPv6Address("TCP", "::1", 80)])

    def test_zone(self) -> None:
        """The zone of a link-local address is kept, in the host, which is all that Twisted connects to."""
        for name in ("fe80::1%1", "fe80::1%lo"):
            [address] = self.look_up(name).addresses
            self.assertEqual((address.host, address.port), ("fe80::1%1", 80))

    def test_not_found(self) -> None:
        """What is not found, or can't be looked up, is complete without addresses."""
        for error in (socket.gaierror(-2, "Name or service not known"), UnicodeError("x"), CancelledError()):
            receiver = self.look_up("a.example", lambda *_, error=error: fail(error))
            self.assertEqual((receiver.addresses, receiver.completed), ([], 1))
            self.assertIsNone(receiver.began[0].problem)

    def test_problem(self) -> None:
        """A look-up that can't be made is complete as well, and the resolution has the reason."""
        for error in (
            OSError(errno.EMFILE, "Too many open files"),
            NoThread(errno.EAGAIN, "can't start new thread"),
            socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
        ):
            receiver = self.look_up("a.example", lambda *_, error=error: fail(error))
            self.assertEqual((receiver.addresses, receiver.completed), ([], 1))
            self.assertIs(receiver.began[0].problem, error)

    def test_no_threads(self) -> None:
        """So it is if there are no threads, which is logged."""
        receiver = self.look_up("a.example", lambda *_: fail(NotRunning("stopped")))
        self.assertEqual((receiver.addresses, receiver.completed), ([], 1))
        self.assertEqual(len(self.flushLoggedErrors(NotRunning)), 1)

    def test_cancel(self) -> None:
        """A look-up that is cancelled is complete, while its thread goes on."""
        receiver = self.look_up("a.example", lambda *_: Deferred())
        receiver.began[0].cancel()
        self.assertEqual((receiver.addresses, receiver.completed), ([], 1))
