"""Webhooks in trouble: what each of them has to survive, whether it is sent captures or events."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

from twisted.internet import reactor

from pcapsvc.core.http_url import parse_http_url
from pcapsvc.destinations.webhook.destination import Webhook
from pcapsvc.interfaces.delivery import IDestination
from pcapsvc.interfaces.threads import RunInThread
from pcapsvc.testing import event_factory
from peers.put import answer, forget, store
from tests.faults.house import House, left_as
from tests.faults.http_destination import HttpDestinationCase, HttpFaults

SECRET = "s3cr3tOfBodies"
_TOKEN = "Bearer s3cr3tOfHeaders"


class WebhookCase(HttpDestinationCase):
    """A webhook, over TLS, with a signature."""

    sends_captures = True

    def make(self, run_in_thread: RunInThread) -> IDestination:
        return Webhook(
            reactor,
            run_in_thread=run_in_thread,
            url=parse_http_url(self.server.url("hook")),
            sends_captures=self.sends_captures,
            events=event_factory(),
            node="web1",
            secret=SECRET,
            headers={"Authorization": _TOKEN},
            verify=str(self.ca_file),
        )

    def files(self) -> dict[str, bytes]:
        """By the node in the name of the file."""
        return {
            path.removeprefix("/hook/").partition("-")[0]: data for path, data in self.server.files().items()
        }

    def assert_secret_kept(self, house: House) -> None:
        """Neither the log's events nor the spool have secrets of the configuration."""
        [manifest] = (self.path / "spool").glob("*/manifest.json")
        for text in (manifest.read_text(), repr(house.reporter.data)):
            for secret in (SECRET, "s3cr3tOfHeaders", self.server.signature):
                self.assertNotIn(secret, text)


class WebhookFaults(HttpFaults):
    """The tests, to be mixed into a L{WebhookCase}."""

    async def test_same_again(self: Any) -> None:
        """If the answer was lost, the next attempt is the same, also after a restart, and so is its key."""
        self.server.behave(forget())
        house = self.house(self.make)
        await self.spooled(house)
        await house.stop()
        self.server.behave(store())
        house.start()
        await self.delivered_in_the_end(house)
        requests = self.server.requests()
        self.assertGreaterEqual(len(requests), 3)
        [headers] = {tuple(sorted(request.headers.items())) for request in requests}
        self.assertIn(("idempotency-key", "abc-webhook"), headers)
        [body] = {request.data for request in requests}
        signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        self.assertIn(("x-pcapsvc-signature-256", f"sha256={signature}"), headers)
        self.assertEqual(self.files(), {"web1": self.data})
        await left_as(self.before)

    async def test_refused(self: Any) -> None:
        """401: one attempt, and the capture is in the spool until somebody has fixed it."""
        self.server.behave(answer(401, _TOKEN))
        house = self.house(self.make)
        await self.spooled(house)
        base = f"https://localhost:{self.server.port}"
        self.assertEqual(house.problems, [f"{base}: answered 401: Unauthorized"])
        self.assert_secret_kept(house)
        self.server.behave(store())
        await house.stop()
        house.start()
        await self.delivered_in_the_end(house)
        await left_as(self.before)
