"""S3 in trouble: what was captured is delivered exactly once, or stays in the spool until it is."""

from __future__ import annotations

import os

from twisted.internet.defer import Deferred

from pcapsvc.core.event import DeliveryPostponed, DeliverySpooled
from tests.faults.destination_case import NAME, named
from tests.faults.house import until
from tests.faults.proxy import Fault, answer
from tests.faults.s3_case import RESET, S3FaultCase


class S3Tests(S3FaultCase):
    """S3, with signatures."""

    async def test_internal_error(self) -> None:
        """500."""
        await self.trouble(Fault(answer=answer(500, "InternalError")), "InternalError")

    async def test_too_many(self) -> None:
        """429 and 503, with C{Retry-After}, which is honoured: in memory, and in the spool."""
        for status, code in ((429, "TooManyRequests"), (503, "SlowDown")):
            for max_delay_seconds in (3.0, None):
                self.proxy.times.clear()
                self.proxy.fault = Fault(answer=answer(status, code, "Retry-After: 1"))
                house = self.house(self.make, max_delay_seconds=max_delay_seconds)
                delivering = Deferred.fromCoroutine(house.deliver(self.data))
                await until(lambda house=house: bool(house.problems))  # type: ignore[misc]
                self.proxy.fault = None
                await delivering
                self.assertEqual(len(house.reported(DeliverySpooled)), 0 if max_delay_seconds else 1)
                await house.emptied()
                self.assert_asked(self.proxy.times)
                await house.stop()
        self.assert_there()
        await self.assert_nothing_left()

    async def test_captive_portal(self) -> None:
        """200 with a page, or with nothing: it stays in the spool until S3 itself answers."""
        for body in (b"<html><body>Please log in</body></html>", b""):
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n" % len(body)
            portal = Fault(answer=head + b"Connection: close\r\n\r\n" + body)
            house = self.house(self.make)
            self.proxy.fault = portal
            await self.spooled(house)
            self.assertIn("answered 200 without an ETag", house.problems[0])
            self.assertEqual(len(house.reported(DeliveryPostponed)), 1)
            self.proxy.fault = None
            await self.delivered_in_the_end(house)
            self.assert_there()
            self.empty_spool()
        await self.assert_nothing_left()

    async def test_interim_responses(self) -> None:
        """102 and 103, followed by an error, are an error."""
        failed = b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        await self.trouble(Fault(answer=failed + answer(500, "InternalError")), "InternalError")

    async def test_reset_before_the_body(self) -> None:
        """A reset at once."""
        await self.trouble(Fault(body_bytes=0), RESET)

    async def test_reset_within_the_body(self) -> None:
        """A reset in the middle."""
        await self.trouble(Fault(body_bytes=100_000), RESET)

    async def test_reset_after_the_body(self) -> None:
        """A reset in place of the answer: the next attempt puts the same object."""
        await self.trouble(Fault(forgetful=True), RESET, arrives=True)

    async def test_hangs(self) -> None:
        """No answer at all."""
        await self.trouble(Fault(silent=True), "timed out after 2 s", timeout_seconds=2.0)

    async def test_drips(self) -> None:
        """An answer that takes a tenth of a second for each byte."""
        await self.trouble(
            Fault(answer_bytes_per_second=10), "timed out after 2 s", arrives=True, timeout_seconds=2.0
        )

    async def test_drips_over_tls(self) -> None:
        """So it is over TLS, with a certificate that is trusted."""
        self.over_tls()
        await self.trouble(
            Fault(answer_bytes_per_second=10), "timed out after 2 s", arrives=True, timeout_seconds=2.0
        )

    async def test_reads_slowly(self) -> None:
        """An object that is read too slowly."""
        self.data = os.urandom(6_000_000)
        await self.trouble(Fault(read_bytes_per_second=500_000), "timed out after 2 s", timeout_seconds=2.0)

    async def test_refused_credentials(self) -> None:
        """Credentials that are refused for a while."""
        refused = answer(403, "InvalidAccessKeyId")
        await self.trouble(Fault(answer=refused), "InvalidAccessKeyId")

    async def test_gone(self) -> None:
        """No server, until there is one again."""
        house = self.house(self.make)
        self.proxy.stop()
        await self.spooled(house)
        self.assertRegex(house.problems[0], 'Could not connect to the endpoint URL: ".*": Connection refused')
        self.proxied(at=self.proxy.port)
        await self.delivered_in_the_end(house)
        self.assert_there()
        await self.assert_nothing_left()

    async def test_few_descriptors(self) -> None:
        """An attempt needs two at a time: one for the capture, and one for the connection."""
        await self.few_descriptors(2)
        self.assertEqual(self.keys(), sorted(map(named, ("first0", "node0", "first1", "node1"))))
        for key in self.keys():
            self.assertEqual(self.server.get(key)[0], self.data)
        await self.assert_nothing_left()

    async def test_memory(self) -> None:
        """Attempts that hang, are refused or reset keep nothing of captures in memory."""
        for fault, words in (
            (Fault(silent=True), "timed out after 0.3 s"),
            (Fault(answer=answer(500, "InternalError")), "InternalError"),
            (Fault(body_bytes=500_000), RESET),
        ):
            self.proxy.fault = fault
            await self.costs_no_memory(words)
            self.empty_spool()
        await self.assert_nothing_left()

    async def test_wrong_certificate(self) -> None:
        """A certificate of an unknown authority, until the right address is configured."""
        right, strange = self.endpoint, self.proxied(certificate=self.files)
        self.endpoint = f"https://127.0.0.1:{strange.port}"
        house = self.house(self.make)
        await self.spooled(house)
        self.assertIn("CERTIFICATE_VERIFY_FAILED", house.problems[0])
        self.endpoint = right
        await self.mended(house)

    async def test_wrong_secret(self) -> None:
        """A secret that is not valid any more."""
        right, self.credentials = self.credentials, {**self.credentials, "access_key": "wr0ng" * 8}
        house = self.house(self.make)
        await self.spooled(house)
        self.assertIn("SignatureDoesNotMatch", house.problems[0])
        self.credentials = right
        await self.mended(house)

    async def test_no_credentials(self) -> None:
        """Credentials that can't be found, until they can."""
        bare = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        self.patch(os, "environ", {**bare, "HOME": str(self.path), "AWS_EC2_METADATA_DISABLED": "true"})
        right, self.credentials = self.credentials, {"access_id": None, "access_key": None}
        house = self.house(self.make)
        await self.spooled(house)
        self.assertIn("credentials", house.problems[0])
        self.credentials = right
        await self.mended(house)

    async def test_vanishing_credentials(self) -> None:
        """
        A profile that is emptied and refused while the daemon runs: it notices, and finds
        the new ones without a restart.
        """
        profile = self.path / "credentials"
        words = "[default]\naws_access_key_id = {access_id}\naws_secret_access_key = {access_key}\n"
        profile.write_text(words.format(**self.credentials))
        bare = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        more = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_SHARED_CREDENTIALS_FILE": str(profile)}
        self.patch(os, "environ", {**bare, "HOME": str(self.path), **more})
        right, self.credentials = self.credentials, {"access_id": None, "access_key": None}
        house = self.house(self.make)
        await house.deliver(self.data, named("first"))
        profile.write_text("")
        # What was read before is used until it is refused.
        await house.deliver(self.data, named("second"))
        self.assertEqual(self.keys(), [named("first"), named("second")])
        self.proxy.fault = Fault(answer=answer(403, "InvalidAccessKeyId"))
        await house.deliver(self.data)
        self.assertIn("InvalidAccessKeyId", house.problems[-1])
        self.proxy.fault = None
        await house.deliver(self.data, named("third"))
        self.assertIn("Unable to locate credentials", house.problems[-1])
        self.assertEqual(self.keys(), [named("first"), named("second")])
        self.assertEqual(house.spool.entries, 2)
        profile.write_text(words.format(**right))
        await until(lambda: house.spool.entries == 0)
        self.assertEqual(self.keys(), [named("first"), named("second"), named("third"), NAME])
        await house.stop()
        await self.assert_nothing_left()
