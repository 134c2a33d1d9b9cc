"""What the sources need, somewhere to submit requests, and what others need of the sources."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.application.service import IService
from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from pcapsvc.core.message import Message
from pcapsvc.core.result import Verdict
from pcapsvc.core.source_state import SourceState


class IRequestSink(Interface):
    """Where a source submits the messages that it receives."""

    def submit(message: Message) -> Deferred[Verdict]:
        """
        Judge a request, and start the captures that it asks for. A source acknowledges a message only after
        the verdict has fired.

        @return: fires with the verdict, and never fails. A verdict that needs no waiting has already fired,
            among them each L{pcapsvc.core.result.NotForThisNode}. On cancel, a request whose captures have
            not started yet is given up, and the verdict is L{pcapsvc.core.result.Busy}.
        """


class IRequestSource(IService):
    """Receives messages, and submits them."""

    name: str = Attribute("The name of the source in messages that it submits, and in the configuration.")

    def state() -> SourceState:
        """
        Whether messages can arrive through it now. The answer is by the source's own evidence: a connection
        that is broken counts as connected until the source notices.
        """


class IHTTPHost(Interface):
    """A source that serves HTTP, and other resources beside its own."""

    root: Any = Attribute("The tree of resources, to which others may be added: an C{IResource} of Twisted.")

    def add_url(url: str) -> None:
        """
        Answer requests that are addressed to this URL, too.

        @param url: as others reach the server, without a query.
        """


def http_host(sources: Iterable[IRequestSource]) -> IHTTPHost | None:
    """The source that serves HTTP; L{None} if there is none."""
    return next((source for source in sources if IHTTPHost.providedBy(source)), None)
