"""Decides on requests, before anything is opened for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
from twisted.logger import Logger

from pcapsvc.core.admission import Admission, Impossible, NoRoom, Reservation
from pcapsvc.core.age import too_old
from pcapsvc.core.errors import NodeBusy, Problem, RequestRejected, shown_words
from pcapsvc.core.mask import without_values
from pcapsvc.core.message import Message
from pcapsvc.core.node import NodeMatcher
from pcapsvc.core.plan import CapturePlan, NodeView, plan_captures
from pcapsvc.core.rate import RequestRate, TimeBudget
from pcapsvc.core.request import (
    StopRequest,
    asks_to_be_logged,
    parse_request,
    quick_address,
    read_address,
)
from pcapsvc.core.result import Busy, NotForThisNode, Rejected, Verdict

#: How many requests of a source may be in preparation; more are answered with L{Busy}.
MOST_PENDING = 128

# What is done before it is known whether a message is for this node: how much of the time each source may
# take for it, and how many seconds at once.
_SHARE = 0.02
_MOST_SECONDS = 0.04
# A body of up to this length may always be read more closely. A longer one takes up to so much for a byte.
_SMALL_BODY_BYTES = 4096
_READ_SECONDS = 40e-9

#: The verdict on every message for other nodes.
NOT_FOR_THIS_NODE = NotForThisNode()
# Of a request that is logged, in characters.
_MOST_LOGGED = 4096


class Admitted(msgspec.Struct, frozen=True, kw_only=True):
    """
    A request that can be done, and for which there is room.

    @ivar reservation: the room; to be released.
    """

    plans: Sequence[CapturePlan]
    reservation: Reservation


class Judge:
    """
    Judges requests.

    @param admission: knows how much room there is.
    @param rate: how many requests each source may bring; L{None} is no bound.
    @param wall_clock: the time in seconds since the Unix epoch.
    @param now: the time in seconds of the clock by which the rate is judged.
    @param max_request_age_seconds: how old a request may be, by its broker's clock; L{None} is no bound.
    @param ignore_unknown: pass over keys of a request that are not known.
    @param log_requests: log each request for this node.
    """

    _log = Logger()

    def __init__(
        self,
        node: NodeView,
        *,
        admission: Admission,
        rate: RequestRate | None = None,
        wall_clock: Callable[[], float] = time.time,
        now: Callable[[], float] = time.monotonic,
        max_request_age_seconds: float | None = None,
        ignore_unknown: bool = False,
        log_requests: bool = False,
    ) -> None:
        self._node = node
        self._budget = TimeBudget(share=_SHARE, most_seconds=_MOST_SECONDS)
        self._matcher = NodeMatcher(
            node.name, lambda source, seconds: self._budget.spend(source, seconds, self._now())
        )
        self._admission = admission
        self._rate = rate or RequestRate(None)
        self._wall_clock = wall_clock
        self._now = now
        self._max_request_age = max_request_age_seconds
        self._ignore_unknown = ignore_unknown
        self._log_requests = log_requests
        self._closed: Busy | None = None

    def open(self) -> None:
        """Admit requests."""
        self._closed = None

    def close(self, reason: str) -> None:
        """From here on, answer each request for this node with L{Busy}."""
        self._closed = Busy(reason=reason)

    @property
    def is_open(self) -> bool:
        """Whether requests are admitted."""
        return self._closed is None

    def judge(self, message: Message, pending: Mapping[str, int]) -> Verdict | Admitted | StopRequest:
        """
        Judge a message. A request to stop captures needs no room, and is returned as it is.

        @param pending: how many requests are in preparation, by source.

        @raise RequestRejected: if the request can't be done.
        """
        source = message.source
        found: Sequence[Problem] = ()
        unreadable: RequestRejected | None = None
        # In a fleet nearly every message is for other nodes: nothing else may come before this.
        address = quick_address(message.body)
        if address is None:
            if not self._may_read(source, len(message.body)):
                return Busy(reason=f"the messages from {source} take too much time to read")
            try:
                address = read_address(message.body)
            except RequestRejected as rejection:
                # Not raised yet: it counts for the rate of its source.
                unreadable = rejection
        if address is not None:
            try:
                if not self._matcher.matches(address.node, address.nodere, source):
                    return NOT_FOR_THIS_NODE
            except RequestRejected as bad_expression:
                found = bad_expression.problems
            except NodeBusy as busy:
                return Busy(reason=str(busy))
        if self._closed is not None:
            return self._closed
        began = self._now()
        if (too_many := self._rate.refusal(source, began)) is not None:
            return Busy(reason=too_many)
        if unreadable is not None:
            raise unreadable
        try:
            return self._judge_for_this_node(message, found, pending)
        finally:
            self.took(source, self._now() - began)

    def _may_read(self, source: str, length: int) -> bool:
        """Whether a source has time left for a message of this length to be read more closely."""
        return length <= _SMALL_BODY_BYTES or self._budget.spend(source, length * _READ_SECONDS, self._now())

    def took(self, source: str, seconds: float) -> None:
        """
        Charge a source for the time that a request of it took, that others could not use.

        @param seconds: how long this process was busy with it, or another one on its behalf.
        """
        self._rate.took(source, seconds)

    def _judge_for_this_node(
        self, message: Message, found: Sequence[Problem], pending: Mapping[str, int]
    ) -> Verdict | Admitted | StopRequest:
        sent_at, body = message.sent_at, message.body
        stale = None if sent_at is None else too_old(sent_at, self._wall_clock(), self._max_request_age)
        if stale is not None:
            return Rejected(problems=(stale,))
        if self._log_requests or asks_to_be_logged(body):
            words = without_values(body.decode("utf-8", "replace"), self._node.bounds.secret_fields)
            text = shown_words(words, _MOST_LOGGED)
            self._log.info("request from {source}: {request}", source=message.source, request=text)
        request = parse_request(body, self._node.bounds, ignore_unknown=self._ignore_unknown, found=found)
        if isinstance(request, StopRequest):
            return request
        if pending.get(message.source, 0) >= MOST_PENDING:
            return Busy(reason=f"{MOST_PENDING} requests from {message.source} are being prepared")
        plans = plan_captures(request, self._node, message.source, now=self._wall_clock(), sent_at=sent_at)
        # Before anything is awaited, so that no other request takes the same room.
        reserved = self._admission.reserve(len(plans), plans[0].most_bytes)
        if isinstance(reserved, Impossible):
            return Rejected(problems=(reserved.problem,))
        if isinstance(reserved, NoRoom):
            return Busy(reason=reserved.reason)
        return Admitted(plans=plans, reservation=reserved)
