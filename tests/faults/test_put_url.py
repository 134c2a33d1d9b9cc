"""
URLs of requests in trouble: what was captured is put exactly once, or stays in the spool until it is,
together with its URL, which nobody else can read.
"""

from __future__ import annotations

import stat

from twisted.internet import reactor

from pcapsvc.core.allowed_hosts import parse_pattern
from pcapsvc.destinations.puturl.destination import PutUrlDestination
from pcapsvc.interfaces.delivery import IDestination
from pcapsvc.interfaces.threads import RunInThread
from peers.put import answer, store
from tests.faults.house import House, left_as
from tests.faults.http_destination import HttpDestinationCase, HttpFaults

_EXPIRED = "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"


class PutUrlTests(HttpFaults, HttpDestinationCase):
    """URLs, over TLS."""

    signature: str | None = None

    def make(self, run_in_thread: RunInThread) -> IDestination:
        port = self.server.port
        patterns = (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}")
        return PutUrlDestination(
            reactor,
            run_in_thread=run_in_thread,
            patterns=[*map(parse_pattern, patterns)],
            insecure=False,
            ca_file=str(self.ca_file),
            node="web1",
        )

    def options(self, name: str) -> dict[str, str]:
        """Each has a URL of its own."""
        url = self.server.url(f"dav/{name.partition('-')[0]}-{{id}}.pcap")
        return {"puturl": url.replace(self.server.signature, self.signature or self.server.signature)}

    def files(self) -> dict[str, bytes]:
        """By the node in the URL."""
        return {
            path.removeprefix("/dav/").removesuffix("-abc.pcap"): data
            for path, data in self.server.files().items()
        }

    def assert_secret_kept(self, house: House) -> None:
        """The URL is in the spool as it was, for this user only; its query is in nothing that is reported."""
        signature = self.signature or self.server.signature
        [manifest] = (self.path / "spool").glob("*/manifest.json")
        self.assertIn(signature, manifest.read_text())
        self.assertEqual(stat.S_IMODE(manifest.stat().st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(manifest.parent.stat().st_mode), 0o700)
        self.assertNotIn(signature, repr(house.reporter.data))

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
