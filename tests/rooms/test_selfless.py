"""Captures without the daemon's own packets."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from ipaddress import ip_address

from twisted.internet.testing import MemoryReactorClock
from twisted.trial import unittest

from pcapsvc.capture.own_sockets import SocketTable
from pcapsvc.capture.selfless import FRESH_SECONDS, SelflessSystem
from pcapsvc.core.errors import CaptureUnavailable, RequestRejected
from pcapsvc.core.own_traffic import Connection, Listener, OwnSockets, OwnTraffic
from pcapsvc.testing import MemoryPacketSystem

_OWN = Connection(
    local=ip_address("10.0.0.1"), local_port=40000, remote=ip_address("192.0.2.1"), remote_port=443
)


class Reactor(MemoryReactorClock):
    """A reactor that does at once what threads give it to do."""

    def callFromThread(self, callable: Callable[..., object], *args: object, **kwargs: object) -> None:
        """Call it."""
        callable(*args, **kwargs)


class Table:
    """A table of sockets that a test fills."""

    def __init__(self, connecting: Callable[[], object]) -> None:
        self.connecting = connecting
        self.sockets = OwnSockets()
        self.unfinished = False
        self.watched = False
        self.looks = 0

    def watch(self) -> None:
        """Take note."""
        self.watched = True

    def unwatch(self) -> None:
        """Take note."""
        self.watched = False

    def look(self) -> OwnSockets:
        """What the test says."""
        self.looks += 1
        return self.sockets


class SelflessSystemTests(unittest.SynchronousTestCase):
    """Filters that change while a capture runs."""

    def setUp(self) -> None:
        """A packet system that knows the filter without the daemon's one connection."""
        self.reactor = Reactor()
        self.memory = MemoryPacketSystem("mem0")
        traffic = OwnTraffic()
        traffic.update(OwnSockets(connections=frozenset({_OWN})), 0.0)
        self.memory.filters["udp"] = lambda data: data.startswith((b"u", b"own"))
        self.memory.filters[f"not ({traffic.bpf}) and (udp)"] = lambda data: data.startswith(b"u")
        self.tables: list[Table] = []
        self.system = SelflessSystem(self.reactor, self.memory, table=self.make_table)

    def make_table(self, connecting: Callable[[], object]) -> Table:
        """A table, kept."""
        self.tables.append(Table(connecting))
        return self.tables[-1]

    def read(self, handle: object) -> list[bytes]:
        """All packets that have arrived."""
        found: list[bytes] = []
        handle.dispatch(100, lambda _, data: found.append(data))  # type: ignore[attr-defined]
        return found

    def test_left_out(self) -> None:
        """What came before the connection was known is left out as well, and all else is there."""
        handle = self.system.open("mem0", snap_length=100, bpf="udp")
        self.memory.deliver("mem0", b"u1", b"own1", b"u2")
        [table] = self.tables
        table.sockets = OwnSockets(connections=frozenset({_OWN}))
        self.assertEqual(self.read(handle), [b"u1", b"u2"])
        self.memory.deliver("mem0", b"own2", b"u3")
        self.assertEqual(self.read(handle), [b"u3"])
        handle.close()

    def test_looks_are_few(self) -> None:
        """Reads within a millisecond share a look; a connection that begins is one more."""
        handle = self.system.open("mem0", snap_length=100, bpf="udp")
        [table] = self.tables
        for _ in range(5):
            self.read(handle)
        self.assertEqual(table.looks, 1)
        table.connecting()
        self.assertEqual(table.looks, 2)
        self.reactor.advance(FRESH_SECONDS)
        self.read(handle)
        self.assertEqual(table.looks, 3)
        handle.close()

    def test_unfinished(self) -> None:
        """A connection whose addresses aren't known yet is looked for soon, though no packet comes."""
        handle = self.system.open("mem0", snap_length=100, bpf="udp")
        [table] = self.tables
        table.unfinished = True
        table.connecting()
        self.reactor.advance(FRESH_SECONDS)
        self.assertEqual(table.looks, 2)
        handle.close()
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_watched_while_needed(self) -> None:
        """Connections are heard of only while something captures."""
        [table] = self.tables
        self.assertRaises(CaptureUnavailable, self.system.open, "nosuch0", snap_length=100, bpf="")
        self.assertFalse(table.watched)
        one = self.system.open("mem0", snap_length=100, bpf="udp")
        other = self.system.open("mem0", snap_length=100, bpf="udp")
        for handle in (one, one):
            handle.close()
        self.assertTrue(table.watched)
        other.close()
        self.assertFalse(table.watched)
        table.connecting()
        self.assertEqual(table.looks, 0)

    def test_judged_by_itself(self) -> None:
        """A filter that is one only within the brackets of another is refused."""
        self.assertRaises(RequestRejected, self.system.open, "mem0", snap_length=100, bpf="udp) or (udp")


class SocketTableTests(unittest.SynchronousTestCase):
    """The sockets of this very process."""

    def setUp(self) -> None:
        """A listener, and a table that watches."""
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.listener.close)
        self.port: int = self.listener.getsockname()[1]
        self.heard = 0
        self.table = SocketTable(self.hear)
        self.table.watch()
        self.addCleanup(self.table.unwatch)

    def hear(self) -> None:
        """Count."""
        self.heard += 1

    def to_listener(self) -> set[int]:
        """The local ports of the connections to the listener that are known now."""
        return {one.local_port for one in self.table.look().connections if one.remote_port == self.port}

    def test_open(self) -> None:
        """What listens and what is connected, both its ends, as often as it is asked."""
        with socket.create_connection(("127.0.0.1", self.port)) as client:
            port = client.getsockname()[1]
            server = self.listener.accept()[0]
            self.addCleanup(server.close)
            here = ip_address("127.0.0.1")
            for _ in range(2):
                found = self.table.look()
                self.assertIn(Listener(local=here, port=self.port), found.listeners)
                for ends in ((port, self.port), (self.port, port)):
                    self.assertIn(
                        Connection(local=here, local_port=ends[0], remote=here, remote_port=ends[1]),
                        found.connections,
                    )
        self.assertEqual(self.to_listener(), set())

    def test_come_and_gone(self) -> None:
        """One that was opened and closed since the last look is known at the next, and its descriptors go."""
        before = len(os.listdir("/proc/self/fd"))
        client = socket.create_connection(("127.0.0.1", self.port))
        port = client.getsockname()[1]
        client.close()
        self.assertEqual(self.heard, 1)
        self.assertEqual(self.to_listener(), {port})
        self.assertEqual(self.to_listener(), set())
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    def test_before_the_answer(self) -> None:
        """One whose peer has not answered yet is known."""
        client = socket.socket()
        self.addCleanup(client.close)
        client.setblocking(False)
        # TEST-NET-1 (RFC 5737): nobody answers.
        if client.connect_ex(("192.0.2.77", 9)) != 115:
            return  # there is no route
        self.assertIn(9, {one.remote_port for one in self.table.look().connections})

    def test_unwatched(self) -> None:
        """What is not watched for leaves no descriptor."""
        socket.create_connection(("127.0.0.1", self.port)).close()
        self.table.unwatch()
        before = len(os.listdir("/proc/self/fd"))
        socket.create_connection(("127.0.0.1", self.port)).close()
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)
        self.assertEqual(self.heard, 1)

    def test_every_address(self) -> None:
        """A listener on all addresses listens on each; not on those of other hosts."""
        with socket.create_server(("", 0)) as everywhere:
            port = everywhere.getsockname()[1]
            found = {one.local for one in self.table.look().listeners if one.port == port}
        self.assertIn(ip_address("127.0.0.1"), found)
        self.assertNotIn(ip_address("0.0.0.0"), found)
