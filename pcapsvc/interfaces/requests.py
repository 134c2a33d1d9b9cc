"""What the sources need: somewhere to submit requests."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from zope.interface import Interface

from pcapsvc.core.message import Message
from pcapsvc.core.result import Verdict


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
