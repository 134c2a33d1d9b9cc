"""A house that delivers to OpenSSH's sshd."""

from __future__ import annotations

import os

from twisted.internet import reactor

from pcapsvc.destinations.sftp.destination import SFTP
from pcapsvc.destinations.sftp.hostkey import parse_host_key
from pcapsvc.interfaces.delivery import IDestination
from pcapsvc.interfaces.threads import RunInThread
from peers.ssh import SftpServer
from tests.faults.destination_case import NAME, FaultCase
from tests.faults.house import House, left_as, possessions
from tests.unit.logged import logged


class SftpFaultCase(FaultCase):
    """
    OpenSSH's sshd.

    @ivar host: where the destination looks for it. So is C{port}.
    """

    host = "127.0.0.1"

    async def setUp(self) -> None:  # type: ignore[override]
        await super().setUp()
        self.server = self.make_server()
        self.addCleanup(self.server.stop)
        self.server.start()
        self.port = self.server.port
        self.directory = self.server.directory / "captures"
        self.host_key = self.server.host_keys["ed25519"]
        self.key_file = self.server.key_file
        self.messages = logged(self)
        self.before = possessions()

    def make_server(self) -> SftpServer:
        """The server."""
        return SftpServer()

    def make(self, run_in_thread: RunInThread) -> IDestination:
        return SFTP(
            reactor,
            run_in_thread=run_in_thread,
            host=self.host,
            port=self.port,
            user=self.server.user,
            key_file=str(self.key_file),
            host_keys=(parse_host_key(self.host_key),),
            directory=str(self.directory),
        )

    def files(self) -> list[str]:
        """The names of what is there, temporary files included."""
        return sorted(os.listdir(self.directory)) if self.directory.exists() else []

    def assert_there(self) -> None:
        """The server has the capture, once, and nothing else."""
        self.assertEqual(self.files(), [NAME])
        self.assertEqual((self.directory / NAME).read_bytes(), self.data)

    async def mended(self, house: House, *, restart: bool = False) -> None:
        """What an operator has fixed is attempted again, immediately after a restart."""
        if restart:
            await house.stop()
            house.start()
        await self.delivered_in_the_end(house)
        self.assert_there()
        await self.assert_nothing_left()

    async def assert_nothing_left(self) -> None:
        """Descriptors and threads are as they were, and nothing of the key was said."""
        await left_as(self.before)
        secret = self.server.key_file.read_text().splitlines()[2]
        for message in self.messages():
            self.assertNotIn(secret, message)
