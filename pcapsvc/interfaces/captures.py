"""What the pipeline needs to register captures, and what APIs, pages and consoles need to look at them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

from zope.interface import Attribute, Interface

from pcapsvc.core.recording import Content
from pcapsvc.interfaces.capture import ICapture

#: The states that a capture can be in.
CAPTURE_STATES = ("capturing", "delivering", "done", "failed")


class EndResult(Enum):
    """What L{ICaptures.end} found."""

    #: The capture was running, and is stopped now.
    ENDED = "ended"
    #: It had stopped before.
    ALREADY_ENDED = "already_ended"
    #: There is no such capture, or it has been forgotten.
    UNKNOWN = "unknown"


class ICaptures(Interface):
    """
    The captures that are running, and the last ones that are done.

    The state of a capture is a mapping of values that JSON has; C{docs/messages.md} describes
    its keys. Nobody may change it.
    """

    def list(
        state: str | None = None, *, requestid: str | None = None, limit: int | None = None
    ) -> Sequence[Mapping[str, Any]]:
        """
        The states of captures, the newest first.

        @param state: only captures in this state, one of L{CAPTURE_STATES}.
        @param requestid: only captures of requests with this C{requestid}.
        @param limit: how many at most.

        @raise ValueError: if there is no such state.
        """

    def ids(
        state: str | None = None, *, requestid: str | None = None, limit: int | None = None
    ) -> Sequence[str]:
        """
        The ids of those that L{list} returns, which takes much less time.

        @raise ValueError: if there is no such state.
        """

    def get(capture_id: str) -> Mapping[str, Any] | None:
        """The state of a capture; L{None} if it is unknown or forgotten."""

    def end(capture_id: str) -> EndResult:
        """Stop a capture. What it has recorded is delivered."""

    def watch(callback: Callable[[Mapping[str, Any]], object]) -> Callable[[], None]:
        """
        Call C{callback} with the state of a capture after each change of it, except for its
        progress. What the callback raises is logged.

        @return: a function that ends this. Further calls of it do nothing.
        """


class ICaptureFiles(Interface):
    """Knows the files of captures, as long as they are in memory."""

    def begin(capture: ICapture) -> None:
        """A capture has started. L{end} or L{fail} is called for it."""

    def end(capture_id: str, content: Content) -> Content:
        """
        A capture has ended.

        @param content: its file, owned from here on.

        @return: the same file. If it is closed, its memory may be kept until others need it.
        """

    def fail(capture_id: str) -> None:
        """A capture has ended without a recording."""


class ICaptureRegistry(Interface):
    """Knows the captures that are running."""

    running: Mapping[str, ICapture] = Attribute("The captures that are running now, by id. A view.")

    def add(capture: ICapture) -> None:
        """
        Register a capture that is about to start. It is kept until its
        L{CaptureStopped<pcapsvc.core.event.CaptureStopped>},
        L{CaptureFailed<pcapsvc.core.event.CaptureFailed>} or
        L{CaptureDone<pcapsvc.core.event.CaptureDone>} is reported.
        """
