"""A house that delivers to an S3 server through a proxy that can be made to fail."""

from __future__ import annotations

import os
from typing import Any

import botocore.session

from pcapsvc.destinations.s3.destination import S3
from pcapsvc.destinations.s3.multipart import Sizes
from pcapsvc.interfaces.delivery import IDestination
from pcapsvc.interfaces.threads import RunInThread
from peers.certificates import Authority
from peers.process import free_port
from peers.s3 import shared_loader, shared_server
from tests.faults.destination_case import NAME, FaultCase
from tests.faults.house import PATIENT_SECONDS, House, left_as, possessions, until
from tests.faults.proxy import Fault, FaultyProxy

#: What botocore says of a reset.
RESET = "Connection was closed before we received a valid response"

#: The service refuses smaller parts, except for the last one.
PART_BYTES = 5 << 20


def in_parts() -> dict[str, Any]:
    """The option with which captures of more than a megabyte are uploaded in small parts."""
    return {"sizes": Sizes(single_bytes=1_000_000, part_bytes=PART_BYTES)}


class S3FaultCase(FaultCase):
    """
    S3, with signatures.

    @ivar host: where the destination looks for it.
    @ivar options: of the destination, in addition.
    """

    host = "127.0.0.1"

    def __init__(self, methodName: str) -> None:
        super().__init__(methodName)
        self.options: dict[str, Any] = {}

    async def setUp(self) -> None:  # type: ignore[override]
        await super().setUp()
        self.patch(botocore.session, "create_loader", shared_loader)
        self.server = shared_server()
        self.keys()
        authority = Authority(self.path, "stranger")
        self.authority_file = authority.file
        certificate = authority.issue("s3")
        self.files = (certificate.certificate, certificate.key)
        # For all proxies of a test: some of them take a descriptor.
        self.ports = [free_port() for _ in range(3)]
        self.before = possessions()
        self.proxies: list[FaultyProxy] = []
        self.proxy = self.proxied()
        self.endpoint = f"http://{self.host}:{self.proxy.port}"
        self.credentials: dict[str, str | None] = {
            "access_id": self.server.access_key,
            "access_key": self.server.secret_key,
        }

    def proxied(self, **options: Any) -> FaultyProxy:
        """A proxy before the server."""
        at = options.pop("at", None) or self.ports.pop()
        proxy = self.make_proxy(int(self.server.endpoint.rpartition(":")[2]), at=at, **options)
        proxy.start()
        self.addCleanup(proxy.stop)
        self.proxies.append(proxy)
        return proxy

    def make_proxy(self, port: int, **options: Any) -> FaultyProxy:
        """A proxy before a port of 127.0.0.1."""
        return FaultyProxy(port, **options)

    def over_tls(self) -> None:
        """Reach the server over TLS, with a certificate that is trusted."""
        self.patch(os, "environ", {**os.environ, "AWS_CA_BUNDLE": str(self.authority_file)})
        self.proxy = self.proxied(certificate=self.files)
        self.endpoint = f"https://127.0.0.1:{self.proxy.port}"

    def make(self, run_in_thread: RunInThread) -> IDestination:
        return S3(
            run_in_thread=run_in_thread,
            run_elsewhere=run_in_thread,
            endpoint=self.endpoint,
            bucket=self.server.bucket,
            region=self.server.region,
            **self.credentials,
            **self.options,
        )

    def keys(self) -> list[str]:
        """The names of what the server has."""
        return self.server.keys()

    async def trouble(
        self,
        fault: Fault,
        words: str,
        *,
        arrives: bool = False,
        timeout_seconds: float = PATIENT_SECONDS,
    ) -> None:
        """
        Failures until the capture is in the spool, and then none.

        @param words: part of their problem.
        @param arrives: whether the server has the capture in spite of them.
        @param timeout_seconds: how long an attempt may take; long if it is not what makes it fail.
        """
        house = self.house(self.make, timeout_seconds=timeout_seconds)
        self.proxy.fault = fault
        await self.spooled(house)
        self.assertIn(words, house.problems[0])
        # Threads return from attempts that have ended; those from the spool go on one by one.
        await until(lambda: len(self.proxy.times) >= 5)
        await until(lambda: house.busy_threads <= 1)
        if arrives:
            await until(lambda: bool(self.keys()))
        self.assertEqual(self.keys(), [NAME] if arrives else [])
        await self.patiently(house)
        self.proxy.fault = None
        await self.delivered_in_the_end(house)
        self.assert_there()
        await self.assert_nothing_left()

    def assert_there(self) -> None:
        """The server has the capture, once."""
        self.assertEqual(self.keys(), [NAME])
        self.assertEqual(self.server.get(NAME)[0], self.data)

    async def assert_nothing_left(self) -> None:
        """Descriptors and threads are as they were."""
        for proxy in self.proxies:
            proxy.stop()
        await left_as(self.before)

    async def mended(self, house: House) -> None:
        """What an operator has fixed is attempted again immediately after a restart."""
        self.assertEqual(self.keys(), [])
        await house.stop()
        house.start()
        await self.delivered_in_the_end(house)
        self.assert_there()
        await self.assert_nothing_left()
