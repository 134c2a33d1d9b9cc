"""The way to one destination: so many deliveries at once, each within its time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from pcapsvc.core.artifact import Artifact
from pcapsvc.core.errors import FAULT, DestinationError
from pcapsvc.core.result import Receipt
from pcapsvc.interfaces.delivery import IDestination


class Lane:
    """
    One destination, and how it is approached. Whoever waits here waits for others on
    the same way to the same destination, and for no other.

    @param at_once: how many attempts may go on at once, 1 or more, on each of its ways.
    @param timeout_seconds: how long each may take; L{None} is no limit.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        destination: IDestination,
        *,
        at_once: int,
        timeout_seconds: float | None,
    ) -> None:
        self._reactor = reactor
        self._destination = destination
        self._places = {route: _Places(at_once) for route in destination.routes}
        self._timeout_seconds = timeout_seconds
        self.name = destination.name
        self.routes = destination.routes

    def route(self, options: Mapping[str, Any]) -> str:
        """Which route a capture takes: see L{IDestination.route}."""
        return self._destination.route(options)

    def attempt(self, artifact: Artifact) -> Deferred[Receipt]:
        """
        Try once, when there is a place.

        @return: fires with the receipt; fails with L{DestinationError} and with no other
            error; on cancel, the attempt ends, and may or may not have arrived.
        """
        return Deferred.fromCoroutine(self._attempt(artifact))

    async def _attempt(self, artifact: Artifact) -> Receipt:
        # Without a place while it waits for the next attempt: those may be minutes.
        options = artifact.options.get(self.name, {})
        places = self._places[self.route(options)]
        await places.acquire()
        try:
            for problem in self._destination.check(options):
                raise DestinationError(f"the request's {problem}", retryable=False)
            stored = self._destination.store(artifact)
            if self._timeout_seconds is not None:
                stored.addTimeout(self._timeout_seconds, self._reactor, _timed_out)
            return await stored
        except (DestinationError, CancelledError):
            raise
        except Exception:  # noqa: BLE001 - one delivery fails, and no other
            self._log.failure(
                "{capture_id}: {destination} met a fault",
                capture_id=artifact.capture_id,
                destination=self.name,
            )
            raise DestinationError(FAULT, retryable=False) from None
        finally:
            places.release()


class _Places:
    """
    So many places, which are had in the order of asking. Tens of thousands may wait, and all
    of them may give up at once: that costs each as much as it would cost one alone.
    """

    def __init__(self, free: int) -> None:
        self._free = free
        self._waiting: OrderedDict[Deferred[None], None] = OrderedDict()
        self._handing_out = False

    def acquire(self) -> Deferred[None]:
        """Fires when there is a place; on cancel, it is waited for no more."""
        if self._free and not self._waiting:
            self._free -= 1
            return succeed(None)
        waiting: Deferred[None] = Deferred(self._waiting.pop)
        self._waiting[waiting] = None
        return waiting

    def release(self) -> None:
        """Give a place back."""
        self._free += 1
        if self._handing_out:
            # Who had it gave it back at once: a call within a call for each would come to an end.
            return
        self._handing_out = True
        try:
            while self._free and self._waiting:
                self._free -= 1
                waiting, _ = self._waiting.popitem(last=False)
                waiting.callback(None)
        finally:
            self._handing_out = False


def _timed_out(result: Any, seconds: float) -> Any:
    if isinstance(result, Failure):
        raise DestinationError(f"no end within {seconds:g} s", retryable=True)
    # It came through just so.
    return result
