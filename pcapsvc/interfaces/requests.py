"""What the sources need: somewhere to submit requests."""

from __future__ import annotations

from zope.interface import Interface

from pcapsvc.core.result import Verdict


class IRequestSink(Interface):
    """Where a source puts the requests that it hears."""

    def submit(source: str, body: bytes, sent_at: float | None = None) -> Verdict:
        """
        Judge a request, and begin the captures that it asks for. Never raises, and
        returns at once: a source acknowledges a message after this.

        @param source: the source's name, for the log.
        @param body: the message, as it came.
        @param sent_at: when its broker took it, in seconds since the Unix epoch, by the
            broker's clock; L{None} where the broker doesn't say.
        """
