"""
URLs of requests in trouble: what was captured is put exactly once, or stays in the spool until it is,
together with its URL, which nobody else can read.
"""

from __future__ import annotations

import os
import stat
from typing import Any

from twisted.internet import reactor

from pcapsvc.core.allowed_hosts import parse_pattern
from pcapsvc.core.event import CaptureDelivered, DeliverySpooled
from pcapsvc.destinations.puturl.destination import PutUrlDestination
from pcapsvc.interfaces.delivery import IDestination
from pcapsvc.interfaces.threads import RunInThread
from peers.certificates import Authority
from peers.put import Behaviour, PutServer, answer, drip, flood, forget, hang, reset, slow, store
from tests.faults.destination_case import FaultCase, named
from tests.faults.house import House, left_as, possessions

# What Twisted says of a reset.
_RESET = "Connection to the other side was lost in a non-clean fashion"
_EXPIRED = "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"


class PutUrlTests(FaultCase):
    """URLs, over TLS."""

    async def setUp(self) -> None:  # type: ignore[override]
        await super().setUp()
        self.server = PutServer()
        self.addCleanup(self.server.stop)
        self.server.start()
        self.ca_file = self.path / "ca.pem"
        self.ca_file.write_bytes(self.server.ca_file.read_bytes())
        self.signature = self.server.signature
        self.before = possessions()

    def make(self, run_in_thread: RunInThread) -> IDestination:
        patterns = (
            f"localhost:{self.server.port}",
            f"127.0.0.1:{self.server.port}",
            f"[::1]:{self.server.port}",
        )
        return PutUrlDestination(
            reactor,
            run_in_thread=run_in_thread,
            patterns=[*map(parse_pattern, patterns)],
            insecure=False,
            ca_file=str(self.ca_file),
            node="web1",
        )

    def house(self, make: Any, **options: Any) -> House:
        """A house whose captures have a URL each."""
        return super().house(make, options=self.options, **options)

    def options(self, name: str) -> dict[str, str]:
        """What the request of a capture says."""
        url = self.server.url(f"dav/{name.partition('-')[0]}-{{id}}.pcap")
        return {"puturl": url.replace(self.server.signature, self.signature)}

    def files(self) -> dict[str, bytes]:
        """What is there, by the node of its name."""
        return {
            path.removeprefix("/dav/").removesuffix("-abc.pcap"): data
            for path, data in self.server.files().items()
        }

    async def trouble(
        self, behaviour: Behaviour, words: str, *, timeout_seconds: float = 20.0, arrives: bool = False
    ) -> None:
        """
        One failure, which another attempt mends; and as many as bring it into the spool.

        @param words: part of their problem.
        @param timeout_seconds: how long an attempt may take; long if it is not what makes it fail.
        @param arrives: whether the server has the capture in spite of them.
        """
        self.server.behave(behaviour, store())
        house = self.house(self.make, timeout_seconds=timeout_seconds)
        await house.deliver(self.data, named("first"))
        self.assertEqual(len(house.reported(CaptureDelivered)), 1, house.problems)
        self.assertEqual(len(house.problems), 1)
        self.assertIn(words, house.problems[0])
        self.assertEqual(house.spool.entries, 0)
        await house.stop()
        house.start()
        self.server.behave(behaviour)
        await self.spooled(house)
        self.assertEqual(set(self.files()), {"first", "web1"} if arrives else {"first"})
        self.assert_private()
        self.assertNotIn(self.signature, repr(house.reporter.data))
        self.server.behave(store())
        await self.delivered_in_the_end(house)
        self.assertEqual(self.files(), {"first": self.data, "web1": self.data})
        await left_as(self.before)

    def assert_private(self) -> None:
        """The URL is in the spool as it was, and only for this user."""
        [manifest] = (self.path / "spool").glob("*/manifest.json")
        self.assertIn(self.signature, manifest.read_text())
        self.assertEqual(stat.S_IMODE(manifest.stat().st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(manifest.parent.stat().st_mode), 0o700)

    async def test_internal_error(self) -> None:
        """500."""
        await self.trouble(answer(500, "out of order"), "answered 500")

    async def test_too_many(self) -> None:
        """429 and 503, with C{Retry-After}, which is honoured: in memory, and in the spool."""
        for status, max_delay_seconds in ((429, 3.0), (503, None)):
            earlier = len(self.server.requests())
            self.server.behave(answer(status, Retry_After="1"), store())
            house = self.house(self.make, max_delay_seconds=max_delay_seconds)
            await house.deliver(self.data, named(f"node{earlier}"))
            self.assertEqual(len(house.reported(DeliverySpooled)), 0 if max_delay_seconds else 1)
            await house.emptied()
            self.assert_asked([request.time for request in self.server.requests()[earlier:]])
            await house.stop()
        await left_as(self.before)

    async def test_captive_portal(self) -> None:
        """200 with a page."""
        await self.trouble(answer(200, "<html>Please log in</html>"), "answered 200 with a page")

    async def test_redirect(self) -> None:
        """A redirect is not followed."""
        await self.trouble(
            answer(307, Location=self.server.url("elsewhere")),
            "answered 307: a redirect, which is not followed",
        )

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
        self.assertNotIn(self.signature, problem)
        self.assert_private()
        await house.stop()
        await left_as(self.before)

    async def test_reset_before_the_body(self) -> None:
        """A reset at once."""
        await self.trouble(reset(), _RESET)

    async def test_reset_within_the_body(self) -> None:
        """A reset in the middle."""
        await self.trouble(reset(100_000), _RESET)

    async def test_reset_after_the_body(self) -> None:
        """A reset in place of the answer: the next attempt replaces the file by itself."""
        await self.trouble(forget(), _RESET, arrives=True)

    async def test_hangs(self) -> None:
        """No answer at all."""
        await self.trouble(hang(), "timed out after 2 s", timeout_seconds=2.0)

    async def test_drips(self) -> None:
        """An answer that takes half a second for each byte."""
        await self.trouble(drip(2), "timed out after 2 s", timeout_seconds=2.0, arrives=True)

    async def test_reads_slowly(self) -> None:
        """A server that reads too slowly."""
        self.data = os.urandom(8_000_000)
        await self.trouble(slow(1_000_000), "timed out after 2 s", timeout_seconds=2.0)

    async def test_endless_answers(self) -> None:
        """An answer that never ends is cut off."""
        await self.trouble(flood(), "the response is longer than")

    async def test_interim_responses(self) -> None:
        """So are interim responses without end."""
        await self.trouble(flood(interim=True), "more than 10 interim responses")

    async def test_wrong_certificate(self) -> None:
        """A certificate of an unknown authority, until the right one is configured."""
        Authority(self.path, "stranger").file.rename(self.ca_file)
        house = self.house(self.make)
        await self.spooled(house)
        self.assertIn("certificate verify failed", house.problems[0])
        self.assertEqual(self.server.requests(), [])
        self.ca_file.write_bytes(self.server.ca_file.read_bytes())
        await self.delivered_after_a_restart(house)

    async def test_memory(self) -> None:
        """Attempts that hang, are refused or reset keep nothing of captures in memory."""
        for behaviour, words in (
            (hang(), "timed out after 0.3 s"),
            (answer(500), "answered 500"),
            (reset(500_000), _RESET),
        ):
            self.server.behave(behaviour)
            await self.costs_no_memory(words)
            self.empty_spool()
        await left_as(self.before)

    async def test_gone(self) -> None:
        """No server, until there is one again."""
        self.server.end()
        house = self.house(self.make)
        await self.spooled(house)
        self.assertIn("Connection was refused", house.problems[0])
        self.server.start()
        await self.delivered_after_a_restart(house)

    async def delivered_after_a_restart(self, house: House) -> None:
        """What an operator has fixed is attempted again immediately after a restart."""
        await house.stop()
        house.start()
        await self.delivered_in_the_end(house)
        self.assertEqual(self.files(), {"web1": self.data})
        self.assertEqual(len([one for one in self.server.requests() if one.is_whole]), 1)
        await left_as(self.before)
