"""
Our fakes, for tests of the service and of what others build on it.

Each passes the same tests as the real thing: see C{tests/contracts}.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import defer
from zope.interface import implementer

from pcapsvc.core.result import Accepted, Event, Verdict
from pcapsvc.interfaces import IReporter, IRequestSink


def run_now(function: Callable[..., Any], *args: Any) -> defer.Deferred[Any]:
    """A L{pcapsvc.interfaces.RunInThread} that has no thread: it runs the function at once."""
    return defer.maybeDeferred(function, *args)


@implementer(IRequestSink)
class MemorySink:
    """
    A sink that answers what it is told to, and keeps what it was given.

    @ivar verdict: the answer to every request.
    @ivar submitted: the source and the body of each request.
    """

    def __init__(self, verdict: Verdict | None = None) -> None:
        self.verdict: Verdict = Accepted(captures=()) if verdict is None else verdict
        self.submitted: list[tuple[str, bytes]] = []

    def submit(self, source: str, body: bytes) -> Verdict:
        """Keep the request."""
        self.submitted.append((source, body))
        return self.verdict


@implementer(IReporter)
class MemoryReporter:
    """
    A reporter that keeps what it is told.

    @ivar events: all of it, in its order.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []

    def report(self, event: Event) -> None:
        """Keep the event."""
        self.events.append(event)
