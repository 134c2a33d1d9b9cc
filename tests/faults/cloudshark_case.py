"""A house that uploads captures to a CloudShark server."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor

from pcapsvc.destinations.cloudshark.destination import CloudShark
from pcapsvc.interfaces.delivery import IDestination
from pcapsvc.interfaces.threads import RunInThread
from peers.cloudshark import CloudSharkServer
from tests.faults.destination_case import TLSServerCase


class CloudSharkCase(TLSServerCase):
    """CloudShark, over TLS."""

    server: CloudSharkServer

    async def setUp(self) -> None:  # type: ignore[override]
        await super().setUp()
        self.token = self.server.token

    def make_server(self) -> CloudSharkServer:
        """The server."""
        return CloudSharkServer()

    def make(self, run_in_thread: RunInThread) -> IDestination:
        return CloudShark(
            reactor,
            run_in_thread=run_in_thread,
            scheme="https",
            host=self.server.host,
            port=self.server.port,
            token=self.token,
            verify=str(self.ca_file),
        )

    def uploads(self) -> list[Any]:
        """What reached the server completely, whatever it answered."""
        return [upload for upload in self.server.uploads() if upload.filename is not None]
