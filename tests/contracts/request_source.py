"""The suite that every source passes, with a fake peer and with a real one."""

from __future__ import annotations

from typing import Any

from twisted.internet import defer
from zope.interface.verify import verifyObject

from pcapsvc.core.source_state import SourceState
from pcapsvc.interfaces.requests import IRequestSource


class RequestSourceContract:
    """
    The state of a source.

    @ivar source: not started.
    @ivar wall: what the source's wall clock says.
    """

    source: Any
    wall = 1_700_000_000.0

    async def connect(self) -> None:
        """Let the started source connect, and return when it has had the time to notice."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Stop the source."""
        await defer.maybeDeferred(self.source.stopService)

    def passes(self, seconds: float) -> float:
        """Let time pass by the wall clock; returns the time."""
        self.wall += seconds
        return self.wall

    def is_now(self: Any, **fields: Any) -> None:
        """The source's state has these fields, and no others that mean something."""
        self.assertEqual(self.source.state(), SourceState(**fields))

    async def test_interface(self: Any) -> None:
        """It is an L{IRequestSource}, and has a name."""
        verifyObject(IRequestSource, self.source)
        self.assertIsInstance(self.source.name, str)

    async def test_from_start_to_stop(self: Any) -> None:
        """It isn't connected before it has started, connects, and isn't connected after a stop."""
        self.is_now()
        began = self.passes(1)
        self.source.startService()
        if not self.source.state().connected:
            self.is_now(since=began)
        began = self.passes(1) if not self.source.state().connected else began
        await self.connect()
        self.is_now(connected=True, since=began)
        ended = self.passes(1)
        await self.stop()
        self.is_now(since=ended)

    async def test_stop_before_it_connects(self: Any) -> None:
        """A stop before it is connected changes only whether it is running."""
        began = self.passes(1)
        self.source.startService()
        connected = self.source.state().connected
        ended = self.passes(1)
        await self.stop()
        self.is_now(since=ended if connected else began)


class PeerContract(RequestSourceContract):
    """The state of a source that has a peer, which may die."""

    async def die(self) -> None:
        """Let the peer die, and return when the source has had the time to notice."""
        raise NotImplementedError

    async def come_back(self) -> None:
        """Let the peer that has died come back, and return when the source has had the time to notice."""
        raise NotImplementedError

    async def test_peer_that_dies(self: Any) -> None:
        """When its peer dies, it says why it isn't connected; when that is back, it is connected again."""
        self.source.startService()
        await self.connect()
        died = self.passes(1)
        await self.die()
        problem = self.source.state().problem
        self.assertTrue(problem)
        self.assertNotIn("\n", problem)
        self.assertNotIn("s3cret", problem)
        self.is_now(since=died, problem=problem)
        back = self.passes(1)
        await self.come_back()
        self.is_now(connected=True, since=back)
        await self.stop()

    async def test_stop_while_the_peer_is_away(self: Any) -> None:
        """After a stop nothing is a problem; that it isn't connected is as old as before."""
        self.source.startService()
        await self.connect()
        died = self.passes(1)
        await self.die()
        self.passes(1)
        await self.stop()
        self.is_now(since=died)
