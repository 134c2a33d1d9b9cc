"""Destinations that speak HTTP, if the link to the server is cut within a capture, or down for a moment."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred

from peers import cloudshark, put
from peers.cloudshark import CloudSharkServer
from peers.link import Link
from peers.put import PutServer
from tests.faults.cloudshark_case import CloudSharkCase
from tests.faults.destination_case import NAME
from tests.faults.house import left_as, until
from tests.faults.http_destination import HttpDestinationCase
from tests.faults.proxy import Fault, FaultyProxy
from tests.faults.put_url_case import PutUrlCase
from tests.faults.s3_case import PART_BYTES, S3FaultCase, in_parts
from tests.faults.webhook_case import WebhookCase

# More than a handshake, and far from the end.
_BEGUN_BYTES = 100_000
# A capture takes far longer than an attempt may, or some seconds: for so long a test may be held up before it
# takes the link down.
_SLOW_BYTES_PER_SECOND, _QUICK_BYTES_PER_SECOND = 100_000, 800_000


class LinkFaults:
    """
    The tests, to be mixed into a case with the server at the far end of C{link}.

    @cvar size_bytes: of a capture.
    @cvar attempts: how many there are before a capture is in the spool.
    @cvar attempt_seconds: how long one may take.
    """

    size_bytes = 4_000_000
    attempts = 2
    attempt_seconds = 1.0

    async def setUp(self: Any) -> None:
        """A link, and then all that is at its ends."""
        self.link = Link()
        self.addCleanup(self.link.stop)
        self.link.start()
        self.host = self.link.far
        await super().setUp()  # type: ignore[misc]

    async def test_cut(self: Any) -> None:
        """
        A link that is cut within a capture: the attempt times out, and so do those that can't connect. When
        the link is up again, the capture is delivered from the spool, once.
        """
        self.data = os.urandom(self.size_bytes)
        self.read(_SLOW_BYTES_PER_SECOND)
        await self.cut_and_mended()

    async def cut_and_mended(self: Any) -> None:
        """Cut the link once a capture is being delivered, and bring it up when that is in the spool."""
        house = self.house(self.make, attempts=self.attempts, timeout_seconds=self.attempt_seconds)
        delivering = Deferred.fromCoroutine(self.spooled(house))
        await self.begun()
        self.link.down()
        await delivering
        for problem in house.problems[: self.attempts]:
            self.assertIn(f"timed out after {self.attempt_seconds:g} s", problem)
        # Attempts from the spool go on one by one, and keep nothing.
        await until(lambda: house.busy_threads <= 1)
        self.assert_there()
        self.read(None)
        self.link.up()
        await self.delivered_in_the_end(house)
        self.assert_there(self.data)
        await self.left()

    async def test_moment(self: Any) -> None:
        """A link that is down for a moment delays a capture, and nothing else."""
        self.data = os.urandom(self.size_bytes)
        self.read(_QUICK_BYTES_PER_SECOND)
        await self.down_for_a_moment()

    async def down_for_a_moment(self: Any) -> None:
        """Take the link down once a capture is being delivered, and bring it up at once."""
        house = self.house(self.make)
        delivering = Deferred.fromCoroutine(house.deliver(self.data))
        await self.begun()
        self.link.down()
        self.assert_there()
        self.link.up()
        await delivering
        self.assertEqual(house.problems, [])
        await house.stop()
        self.assert_there(self.data)
        await self.left()

    async def begun(self: Any) -> None:
        """Wait until some of the capture has been sent."""
        before = self.link.sent_bytes
        await until(lambda: self.link.sent_bytes > before + _BEGUN_BYTES)

    async def left(self: Any) -> None:
        """Descriptors and threads are as they were."""
        await left_as(self.before)


class _PutCase(HttpDestinationCase):
    """A server of L{peers.put} at the far end."""

    link: Link

    def make_server(self) -> PutServer:
        return PutServer(address=self.link.far, wrapper=self.link.wrapper)

    def read(self, bytes_per_second: float | None) -> None:
        """Have captures read at this rate; L{None} is as fast as possible."""
        self.server.behave(put.store() if bytes_per_second is None else put.slow(bytes_per_second))

    def assert_there(self, *captures: bytes) -> None:
        """The server has these captures, and nothing else."""
        self.assertEqual([*self.files().values()], [*captures])


class PutUrlLinkTests(LinkFaults, _PutCase, PutUrlCase):
    """URLs of requests."""


class WebhookLinkTests(LinkFaults, _PutCase, WebhookCase):
    """A webhook that is sent captures."""


class CloudSharkLinkTests(LinkFaults, CloudSharkCase):
    """CloudShark."""

    def make_server(self) -> CloudSharkServer:
        return CloudSharkServer(address=self.link.far, wrapper=self.link.wrapper)

    def read(self, bytes_per_second: float | None) -> None:
        """See L{_PutCase.read}."""
        rate = bytes_per_second
        self.server.behave(cloudshark.accept() if rate is None else cloudshark.slow(rate))

    def assert_there(self, *captures: bytes) -> None:
        """See L{_PutCase.assert_there}."""
        self.assertEqual(self.server.captures(), [NAME for _ in captures])
        self.assertEqual([upload.data for upload in self.uploads()], [*captures])


class S3LinkTests(LinkFaults, S3FaultCase):
    """S3, behind a proxy at the far end."""

    def make_proxy(self, port: int, **options: Any) -> FaultyProxy:
        return self.link.there(partial(FaultyProxy, port, host=self.host, **options))

    def read(self, bytes_per_second: float | None) -> None:
        """See L{_PutCase.read}."""
        rate = bytes_per_second
        self.proxy.fault = None if rate is None else Fault(read_bytes_per_second=rate)

    def assert_there(self, *captures: bytes) -> None:
        """See L{_PutCase.assert_there}."""
        self.assertEqual([self.server.get(key)[0] for key in self.keys()], [*captures])

    async def left(self) -> None:
        await self.assert_nothing_left()


class S3PartsLinkTests(S3LinkTests):
    """S3, and captures in two parts: the link is cut within one, or between them."""

    size_bytes = PART_BYTES + 100_000
    # In the end, it is no longer tried to have the first part removed, which takes 10 s.
    attempts = 4
    attempt_seconds = 4.0
    timeout = 300
    _is_between_parts = False

    async def setUp(self) -> None:
        await super().setUp()
        self.options = in_parts()

    async def begun(self) -> None:
        if self._is_between_parts:
            # An upload was begun, and the first part is there.
            await until(lambda: self.proxy.answered == 2)
        else:
            await super().begun()

    def assert_there(self, *captures: bytes) -> None:
        """Nor are there parts, unless there was no way yet to remove them."""
        super().assert_there(*captures)
        if captures:
            self.assertEqual(self.server.uploads(), [])

    def answer_slowly(self, bytes_per_second: float) -> None:
        """Have the answer to the first part arrive slowly."""
        self._is_between_parts = True
        self.data = os.urandom(self.size_bytes)
        self.proxy.fault = Fault(only=b"partNumber=1", answer_bytes_per_second=bytes_per_second)

    async def test_cut_between_parts(self) -> None:
        """So it is if the first part has arrived, and the second has not been sent."""
        self.answer_slowly(10)
        await self.cut_and_mended()

    async def test_moment_between_parts(self) -> None:
        """Likewise."""
        self.answer_slowly(150)
        await self.down_for_a_moment()
