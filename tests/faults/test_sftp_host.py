"""SFTP if the fault is on this side: the link is cut, or there are no descriptors."""

from __future__ import annotations

import os
import signal

from twisted.internet.defer import Deferred

from pcapsvc.destinations.sftp import destination, ssh
from peers.link import Link
from peers.ssh import SftpServer
from tests.faults.destination_case import NAME, named
from tests.faults.house import until
from tests.faults.sftp_case import SftpFaultCase


class LinkTests(SftpFaultCase):
    """A server at the far end of a link, which loses packets silently while it is down."""

    def make_server(self) -> SftpServer:
        self.link = Link()
        self.addCleanup(self.link.stop)
        self.link.start()
        self.host = self.link.far
        return SftpServer(host=self.link.far, wrapper=self.link.wrapper)

    async def test_cut(self) -> None:
        """
        A link that is cut within a file: the attempt ends, and so do those that can't connect. When the link
        is up again, the capture is delivered from the spool, in place of what had arrived of it.
        """
        self.patch(ssh, "SILENCE_SECONDS", 3.0)
        self.patch(destination, "CONNECT_SECONDS", 3.0)
        self.data = os.urandom(20_000_000)
        house = self.house(self.make)
        delivering = Deferred.fromCoroutine(self.spooled(house))
        await until(lambda: self.files() == [f".{NAME}.part"])
        # Else it might read all of the file before the link is down.
        self.server.signal_sessions(signal.SIGSTOP)
        self.link.down()
        self.server.signal_sessions(signal.SIGCONT)
        await delivering
        first, second = house.problems[:2]
        self.assertIn("the server has not answered for 3 s", first)
        self.assertIn("User timeout caused connection failure", second)
        self.assertNotIn(NAME, self.files())
        self.link.up()
        await self.mended(house)

    async def test_moment(self) -> None:
        """A link that is down for a moment delays a capture, and nothing else."""
        self.data = os.urandom(20_000_000)
        house = self.house(self.make)
        delivering = Deferred.fromCoroutine(house.deliver(self.data))
        await until(lambda: self.files() == [f".{NAME}.part"])
        self.link.down()
        self.link.up()
        await delivering
        self.assertEqual(house.problems, [])
        await house.stop()
        self.assert_there()
        await self.assert_nothing_left()


class DescriptorTests(SftpFaultCase):
    """A limit of open files."""

    async def test_few(self) -> None:
        """An attempt needs two at a time: one for the key or the connection, and one for the capture."""
        await self.few_descriptors(2)
        self.assertEqual(self.files(), sorted(map(named, ("first0", "node0", "first1", "node1"))))
        for name in self.files():
            self.assertEqual((self.directory / name).read_bytes(), self.data)
        await self.assert_nothing_left()
