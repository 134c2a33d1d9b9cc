"""The faults that every destination has to survive that speaks HTTP with a server of L{peers.put}."""

from __future__ import annotations

import os
from typing import Any

from pcapsvc.core.event import DeliverySpooled
from peers.certificates import Authority
from peers.put import Behaviour, PutServer, answer, drip, flood, forget, hang, reset, slow, store
from tests.faults.destination_case import TLSServerCase, named
from tests.faults.house import PATIENT_SECONDS, House, left_as, until

# What Twisted says of a reset.
_RESET = "Connection to the other side was lost in a non-clean fashion"


class HttpDestinationCase(TLSServerCase):
    """
    A server, and what it has.

    Each subclass says what it has for the captures of the node C{first}, C{node0} and so on: L{files}.

    @cvar slow_bytes_per_second: too slow for what is sent of 5 MB.
    @cvar descriptors: how many an attempt needs at once: for the capture, and for look-ups, certificates or a
        connection.
    """

    slow_bytes_per_second = 500_000
    descriptors = 2
    server: PutServer

    def make_server(self) -> PutServer:
        """The server."""
        return PutServer()

    def house(self, make: Any, **options: Any) -> House:
        """A house whose captures say what is to be said of the destination."""
        return super().house(make, options=self.options, **options)

    def options(self, name: str) -> dict[str, Any]:
        """What the request of a capture says."""
        return {}

    def files(self) -> dict[str, bytes]:
        """What the server has, by the node."""
        raise NotImplementedError

    def assert_secret_kept(self, house: House) -> None:
        """Nothing that is reported has a secret."""

    async def trouble(
        self,
        behaviour: Behaviour,
        words: str,
        *,
        timeout_seconds: float = PATIENT_SECONDS,
        arrives: bool = False,
    ) -> None:
        """
        One failure, which another attempt mends; and as many as bring it into the spool.

        @param words: part of their problem.
        @param timeout_seconds: how long an attempt may take; long if it is not what makes it fail.
        @param arrives: whether the server has the capture in spite of them.
        """
        self.server.behave(behaviour, store())
        await self.one_failure_mended(words, timeout_seconds)
        house = self.house(self.make, timeout_seconds=timeout_seconds)
        self.server.behave(behaviour)
        await self.spooled(house)
        if arrives:
            # In one of the attempts from the spool, if those before took too long on a busy machine.
            await until(lambda: "web1" in self.files())
        self.assertEqual(set(self.files()), {"first", "web1"} if arrives else {"first"})
        self.assert_secret_kept(house)
        await self.patiently(house)
        self.server.behave(store())
        await self.delivered_in_the_end(house)
        self.assertEqual(self.files(), {"first": self.data, "web1": self.data})
        await left_as(self.before)

    async def delivered_after_a_restart(self, house: House) -> None:
        """What an operator has fixed is attempted again immediately after a restart."""
        await house.stop()
        house.start()
        await self.delivered_in_the_end(house)
        self.assertEqual(self.files(), {"web1": self.data})
        self.assertEqual(len([one for one in self.server.requests() if one.is_whole]), 1)
        await left_as(self.before)


class HttpFaults:
    """The tests, to be mixed into an L{HttpDestinationCase}."""

    async def test_internal_error(self: Any) -> None:
        """500."""
        await self.trouble(answer(500, "out of order"), "answered 500")

    async def test_too_many(self: Any) -> None:
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

    async def test_redirect(self: Any) -> None:
        """A redirect is not followed."""
        await self.trouble(
            answer(307, Location=self.server.url("elsewhere")),
            "answered 307: a redirect, which is not followed",
        )

    async def test_reset_before_the_body(self: Any) -> None:
        """A reset at once."""
        await self.trouble(reset(), _RESET)

    async def test_reset_within_the_body(self: Any) -> None:
        """A reset in the middle."""
        await self.trouble(reset(100_000), _RESET)

    async def test_reset_after_the_body(self: Any) -> None:
        """A reset in place of the answer: the next attempt replaces what is there."""
        await self.trouble(forget(), _RESET, arrives=True)

    async def test_hangs(self: Any) -> None:
        """No answer at all."""
        await self.trouble(hang(), "timed out after 2 s", timeout_seconds=2.0)

    async def test_drips(self: Any) -> None:
        """An answer that takes half a second for each byte."""
        await self.trouble(drip(2), "timed out after 2 s", timeout_seconds=2.0, arrives=True)

    async def test_reads_slowly(self: Any) -> None:
        """A server that reads too slowly."""
        # More than the buffers of a connection hold.
        self.data = os.urandom(5_000_000)
        await self.trouble(slow(self.slow_bytes_per_second), "timed out after 2 s", timeout_seconds=2.0)

    async def test_endless_answers(self: Any) -> None:
        """An answer that never ends is cut off."""
        await self.trouble(flood(), "the response is longer than")

    async def test_interim_responses(self: Any) -> None:
        """So are interim responses without end."""
        await self.trouble(flood(interim=True), "more than 10 interim responses")

    async def test_wrong_certificate(self: Any) -> None:
        """A certificate of an unknown authority, until the right one is configured."""
        Authority(self.path, "stranger").file.rename(self.ca_file)
        house = self.house(self.make)
        await self.spooled(house)
        self.assertIn("certificate verify failed", house.problems[0])
        self.assertEqual(self.server.requests(), [])
        self.ca_file.write_bytes(self.server.ca_file.read_bytes())
        await self.delivered_after_a_restart(house)

    async def test_memory(self: Any) -> None:
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

    async def test_few_descriptors(self: Any) -> None:
        """Fewer descriptors than an attempt needs."""
        await self.few_descriptors(self.descriptors)
        wanted = [f"{name}{free}" for name in ("first", "node") for free in range(self.descriptors)]
        self.assertEqual(self.files(), dict.fromkeys(wanted, self.data))
        await left_as(self.before)

    async def test_gone(self: Any) -> None:
        """No server, until there is one again."""
        self.server.end()
        house = self.house(self.make)
        await self.spooled(house)
        self.assertIn("Connection was refused", house.problems[0])
        self.server.start()
        await self.delivered_after_a_restart(house)
