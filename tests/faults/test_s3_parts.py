"""Uploads to S3 in parts, in trouble: each is delivered once, and nothing of the others is left behind."""

from __future__ import annotations

import os

from twisted.internet.defer import Deferred

from pcapsvc.core.event import CaptureDelivered
from tests.faults.destination_case import NAME, named, no_descriptors
from tests.faults.house import PATIENT_SECONDS, until
from tests.faults.proxy import Fault, answer
from tests.faults.s3_case import PART_BYTES, RESET, S3FaultCase, in_parts

shared_peer = "S3 server"

# The requests of an upload in two parts, up to the last one.
_BEGIN, _FIRST, _SECOND = b"?uploads", b"partNumber=1", b"partNumber=2"
_KMS_KEY = "arn:aws:kms:us-east-1:123456789012:key/captures"


class S3PartsTests(S3FaultCase):
    """The same as with whole objects, at each step."""

    timeout = 300

    async def setUp(self) -> None:  # type: ignore[override]
        await super().setUp()
        self.options = in_parts()
        self.completes = f"POST /{self.server.bucket}/{NAME}?uploadId=".encode()
        self.data = os.urandom(PART_BYTES + 100_000)

    def assert_there(self) -> None:
        super().assert_there()
        _, _, head = self.server.get(NAME)
        self.assertEqual(head.get("SSEKMSKeyId"), self.options.get("kms_key_id"))

    async def at_each_step(self, words: str, *steps: Fault, timeout_seconds: float = PATIENT_SECONDS) -> None:
        """Each of these faults leaves the capture in the spool, and nothing at the service."""
        for fault in steps:
            house = self.house(self.make, attempts=1, retry_seconds=0.5, timeout_seconds=timeout_seconds)
            self.proxy.fault = fault
            await self.spooled(house)
            self.assertIn(words, house.problems[0])
            await until(lambda: self.server.uploads() == [])
            self.assertEqual(self.keys(), [])
            await self.patiently(house)
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

    async def test_over_tls_with_kms(self) -> None:
        """So it is over TLS, if KMS encrypts the object. The server checks each signature."""
        self.over_tls()
        self.options |= {"kms_key_id": _KMS_KEY}
        await self.at_each_step(
            f"https://127.0.0.1:{self.proxy.port}/",
            Fault(only=_FIRST, body_bytes=1_000_000),
            Fault(only=_SECOND, body_bytes=0),
        )

    async def test_wrong_secret_over_tls(self) -> None:
        """A secret that isn't valid any more, over TLS: nothing is begun."""
        self.over_tls()
        right, self.credentials = self.credentials, {**self.credentials, "access_key": "wr0ng" * 8}
        house = self.house(self.make)
        await self.spooled(house)
        self.assertIn("SignatureDoesNotMatch", house.problems[0])
        self.assertEqual(self.server.uploads(), [])
        self.credentials = right
        await self.mended(house)

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

    async def test_few_descriptors(self) -> None:
        """
        No descriptor is left for the second part, nor to have the first one removed: the next attempt does
        that, and succeeds.
        """
        house = self.house(self.make, attempts=10)
        # From here on, no module is missing.
        self.proxy.fault = Fault(only=_FIRST, body_bytes=0)
        delivering = Deferred.fromCoroutine(house.deliver(self.data, named("first")))
        await until(lambda: bool(house.problems))
        self.proxy.fault = Fault(only=_FIRST, answer_bytes_per_second=500)
        await delivering
        known = len(house.problems)
        self.proxy.answered = 0
        delivering = Deferred.fromCoroutine(house.deliver(self.data))
        await until(lambda: self.proxy.answered == 2)
        with no_descriptors():
            await until(lambda: len(house.problems) > known)
        self.proxy.fault = None
        await delivering
        self.assertIn("Too many open files", house.problems[known])
        self.assertEqual(len(house.reported(CaptureDelivered)), 2, house.problems)
        self.assertEqual(self.keys(), [named("first"), NAME])
        self.assertEqual({self.server.get(key)[0] for key in self.keys()}, {self.data})
        self.assertEqual(self.server.uploads(), [])
        await house.stop()
        await self.assert_nothing_left()

    async def test_left_by_another_process(self) -> None:
        """
        Parts that a process left that was killed are removed, once the capture is delivered from the spool;
        but no others.
        """
        house = self.house(self.make)
        self.proxy.fault = Fault(only=_BEGIN, answer=answer(500, "InternalError"))
        await self.spooled(house)
        await house.stop()
        for key in (NAME, f"{NAME}.old"):
            self.server.begin_upload(key)
        self.proxy.fault = None
        house.start()
        await self.delivered_in_the_end(house)
        self.assert_there()
        self.assertEqual(self.server.uploads(), [f"{NAME}.old"])

    async def test_may_not_list(self) -> None:
        """If the credentials may not list uploads, the capture is delivered all the same."""
        house = self.house(self.make)
        self.proxy.fault = Fault(only=_FIRST, answer=answer(500, "InternalError"))
        await self.spooled(house)
        self.proxy.fault = Fault(only=b"GET ", answer=answer(403, "AccessDenied"))
        await self.delivered_in_the_end(house)
        self.assert_there()
        await self.assert_nothing_left()
