"""Uploads to S3 in parts, in trouble: each is delivered once, and nothing of the others is left behind."""

from __future__ import annotations

import os

from pcapsvc.destinations.s3.multipart import Sizes
from tests.faults.destination_case import NAME
from tests.faults.house import until
from tests.faults.proxy import Fault, answer
from tests.faults.s3_case import RESET, S3FaultCase

# The requests of an upload in two parts, up to the last one.
_BEGIN, _FIRST, _SECOND = b"?uploads", b"partNumber=1", b"partNumber=2"


class S3PartsTests(S3FaultCase):
    """The same as with whole objects, at each step."""

    timeout = 150

    async def setUp(self) -> None:  # type: ignore[override]
        await super().setUp()
        # The service refuses smaller parts than 5 MiB, except for the last one.
        self.options = {"sizes": Sizes(single_bytes=1_000_000, part_bytes=5 << 20)}
        self.completes = f"POST /{self.server.bucket}/{NAME}?uploadId=".encode()
        self.data = os.urandom((5 << 20) + 100_000)

    async def at_each_step(self, words: str, *steps: Fault, timeout_seconds: float = 20.0) -> None:
        """Each of these faults leaves the capture in the spool, and nothing at the service."""
        for fault in steps:
            house = self.house(self.make, attempts=1, retry_seconds=0.5, timeout_seconds=timeout_seconds)
            self.proxy.fault = fault
            await self.spooled(house)
            self.assertIn(words, house.problems[0])
            await until(lambda: self.server.uploads() == [])
            self.assertEqual(self.keys(), [])
            self.proxy.fault = None
            await self.delivered_in_the_end(house)
            self.assert_there()
            self.assertEqual(self.server.uploads(), [])
            self.server.delete(NAME)
            self.empty_spool()
        await self.assert_nothing_left()

    async def test_refused(self) -> None:
        """Errors, of each request."""
        await self.at_each_step(
            "InternalError",
            *(
                Fault(only=only, answer=answer(500, "InternalError"))
                for only in (_BEGIN, _SECOND, self.completes)
            ),
        )

    async def test_success_that_is_none(self) -> None:
        """The last request may be answered 200 with an error (S3 API Reference, CompleteMultipartUpload)."""
        failed = answer(200, "InternalError")
        await self.at_each_step("InternalError", Fault(only=self.completes, answer=failed))

    async def test_captive_portal(self) -> None:
        """A page in place of S3's answers proves nothing. (botocore calls it an internal error.)"""
        page = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"
        await self.at_each_step(
            "500: Internal Server Error", *(Fault(only=only, answer=page) for only in (_BEGIN, _SECOND))
        )

    async def test_nothing(self) -> None:
        """Nor does an empty answer."""
        empty = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        await self.at_each_step("without an ETag", Fault(only=_SECOND, answer=empty))

    async def test_reset(self) -> None:
        """A reset before and within a part."""
        await self.at_each_step(
            RESET, Fault(only=_FIRST, body_bytes=0), Fault(only=_FIRST, body_bytes=1_000_000)
        )

    async def test_hangs(self) -> None:
        """No answer, until the time of the attempt is up."""
        await self.at_each_step("timed out after 6 s", Fault(only=_SECOND, silent=True), timeout_seconds=6.0)

    async def test_completed_without_an_answer(self) -> None:
        """If the last answer was lost, the next attempt finds the object, and uploads nothing."""
        house = self.house(self.make, attempts=1, retry_seconds=0.5)
        self.proxy.fault = Fault(only=self.completes, forgetful=True)
        await self.spooled(house)
        self.assertIn(RESET, house.problems[0])
        self.assert_there()
        # From here on, nothing could be uploaded.
        self.proxy.fault = Fault(only=_BEGIN, answer=answer(500, "InternalError"))
        await self.delivered_in_the_end(house)
        self.assert_there()
        self.assertEqual(self.server.uploads(), [])
        await self.assert_nothing_left()
