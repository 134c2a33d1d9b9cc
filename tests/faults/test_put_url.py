"""
URLs of requests in trouble: what was captured is put exactly once, or stays in the spool until it is,
together with its URL, which nobody else can read.
"""

from __future__ import annotations

from peers.put import answer, store
from tests.faults.house import left_as
from tests.faults.http_destination import HttpFaults
from tests.faults.put_url_case import PutUrlCase

_EXPIRED = "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"


class PutUrlTests(HttpFaults, PutUrlCase):
    """URLs, over TLS."""

    async def test_captive_portal(self) -> None:
        """200 with a page."""
        await self.trouble(answer(200, "<html>Please log in</html>"), "answered 200 with a page")

    async def test_expired(self) -> None:
        """A URL that has expired: one attempt says so, and the capture is in the spool."""
        self.server.behave(answer(403, _EXPIRED))
        house = self.house(self.make)
        await self.spooled(house)
        self.assertEqual(len(self.server.requests()), 1)
        base = f"https://localhost:{self.server.port}"
        self.assertEqual(house.problems, [f"{base}: answered 403: the URL has expired"])
        self.server.behave(store())
        await house.stop()
        house.start()
        await self.delivered_in_the_end(house)
        await left_as(self.before)

    async def test_wrong_signature(self) -> None:
        """A signature that is not valid: the error says so, and repeats nothing that the server repeats."""
        self.signature = "0therSecretSignature"
        house = self.house(self.make)
        await self.spooled(house)
        [problem] = house.problems
        self.assertIn("answered 403: the signature in the URL is not valid for this request", problem)
        self.assert_secret_kept(house)
        await house.stop()
        await left_as(self.before)
