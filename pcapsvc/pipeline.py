"""The whole flow: a message is judged, its captures run, and what they bring is delivered."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pcapsvc.core.admission import Admission
from pcapsvc.core.age import too_old
from pcapsvc.core.artifact import file_name, make_artifact
from pcapsvc.core.errors import (
    FAULT,
    CaptureForbidden,
    CaptureUnavailable,
    NodeBusy,
    PcapsvcError,
    Problem,
    RequestRejected,
    shown_words,
)
from pcapsvc.core.event import (
    CaptureDone,
    CaptureFailed,
    CaptureStarted,
    CaptureStopped,
    EventFactory,
    Payload,
    verdict_payload,
)
from pcapsvc.core.message import Message
from pcapsvc.core.node import NodeMatcher
from pcapsvc.core.plan import CapturePlan, NodeView, plan_captures
from pcapsvc.core.rate import RequestRate
from pcapsvc.core.recording import Content, Recording
from pcapsvc.core.request import asks_to_be_logged, parse_request, read_address, read_labels
from pcapsvc.core.result import Accepted, Busy, NotForThisNode, Rejected, StartedCapture, Verdict
from pcapsvc.core.session import StopReason
from pcapsvc.interfaces.capture import ICapture, ICapturer
from pcapsvc.interfaces.captures import ICaptureRegistry
from pcapsvc.interfaces.delivery import IDelivery, IEncoder
from pcapsvc.interfaces.reports import IReporter
from pcapsvc.interfaces.requests import IRequestSink

_NOT_FOR_THIS_NODE = NotForThisNode()
# Of a request that is logged, in characters.
_MOST_LOGGED = 4096


@implementer(IRequestSink)
class Pipeline(Service):
    """
    Where every request goes through.

    @param encoder: makes the file that is delivered from a recording.
    @param delivery: brings what captures bring to the destinations.
    @param reporter: hears what becomes of requests and captures.
    @param events: makes the events.
    @param captures: knows the captures that are running.
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
        capturer: ICapturer,
        encoder: IEncoder,
        delivery: IDelivery,
        reporter: IReporter,
        events: EventFactory,
        captures: ICaptureRegistry,
        admission: Admission,
        rate: RequestRate | None = None,
        wall_clock: Callable[[], float] = time.time,
        now: Callable[[], float] = time.monotonic,
        max_request_age_seconds: float | None = None,
        ignore_unknown: bool = False,
        log_requests: bool = False,
    ) -> None:
        self._node = node
        self._matcher = NodeMatcher(node.name)
        self._capturer = capturer
        self._encoder = encoder
        self._delivery = delivery
        self._reporter = reporter
        self._events = events
        self._captures = captures
        self._admission = admission
        self._rate = rate or RequestRate(None)
        self._wall_clock = wall_clock
        self._now = now
        self._max_request_age = max_request_age_seconds
        self._ignore_unknown = ignore_unknown
        self._log_requests = log_requests
        self._running: set[ICapture] = set()
        self._flows: set[Deferred[None]] = set()
        self._stopping = False

    def startService(self) -> None:
        """Take requests."""
        super().startService()  # type: ignore[no-untyped-call]
        self._stopping = False

    def stopService(self) -> Deferred[None]:
        """
        Take no more requests, and end every capture with what it has.

        @return: fires when all is delivered, or has failed to be; on cancel, the
            deliveries that still go on are given up.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        self._stopping = True
        flows = list(self._flows)
        for capture in list(self._running):
            capture.end(StopReason.SHUTDOWN)
        done = DeferredList(flows, consumeErrors=True)

        def give_up(_: object) -> None:
            for flow in flows:
                flow.cancel()

        waited: Deferred[None] = Deferred(give_up)
        done.addCallback(lambda _: None if waited.called else waited.callback(None))
        return waited

    def submit(self, message: Message) -> Deferred[Verdict]:
        """Judge a request, and start its captures: see L{IRequestSink.submit}."""
        source, body = message.source, message.body
        try:
            verdict = self._judge(source, body, message.sent_at)
        except RequestRejected as rejection:
            verdict = Rejected(problems=rejection.problems)
        except Exception:  # noqa: BLE001 - one request fails, and no other
            self._log.failure("a request from {source} could not be judged", source=source)
            verdict = Rejected(problems=(Problem(path="request", rule=f"caused an {FAULT}"),))
        if isinstance(verdict, Rejected | Busy):
            self._reporter.report(self._events.event(verdict_payload(verdict), read_labels(body, source)))
        return succeed(verdict)

    def _judge(self, source: str, body: bytes, sent_at: float | None) -> Verdict:
        # With a fleet nearly every message is for others: nothing else may come before this.
        address = read_address(body)
        found: Sequence[Problem] = ()
        try:
            if not self._matcher.matches(address.node, address.nodere):
                return _NOT_FOR_THIS_NODE
        except RequestRejected as bad_expression:
            found = bad_expression.problems
        if self._stopping:
            return Busy(reason="the daemon is stopping")
        began = self._now()
        if (too_many := self._rate.refusal(source, began)) is not None:
            return Busy(reason=too_many)
        try:
            return self._judge_for_this_node(source, body, sent_at, found)
        finally:
            self._rate.took(source, self._now() - began)

    def _judge_for_this_node(
        self, source: str, body: bytes, sent_at: float | None, found: Sequence[Problem]
    ) -> Verdict:
        stale = None if sent_at is None else too_old(sent_at, self._wall_clock(), self._max_request_age)
        if stale is not None:
            return Rejected(problems=(stale,))
        if self._log_requests or asks_to_be_logged(body):
            self._log_request(source, body)
        request = parse_request(body, self._node.bounds, ignore_unknown=self._ignore_unknown, found=found)
        plans = plan_captures(request, self._node, source)
        needs = (len(plans), plans[0].most_bytes)
        if (impossible := self._admission.impossible(*needs)) is not None:
            return Rejected(problems=(impossible,))
        if (refusal := self._admission.refusal(*needs)) is not None:
            return Busy(reason=refusal)
        return self._begin(plans)

    def _log_request(self, source: str, body: bytes) -> None:
        text = shown_words(body.decode("utf-8", "replace"), _MOST_LOGGED)
        self._log.info("request from {source}: {request}", source=source, request=text)

    def _begin(self, plans: Sequence[CapturePlan]) -> Verdict:
        """Open all before any starts, so that a filter which one interface refuses starts none."""
        prepared: list[ICapture] = []
        problems: list[Problem] = []
        try:
            for plan in plans:
                try:
                    prepared.append(self._capturer.prepare(plan))
                except CaptureUnavailable as error:
                    problems.append(Problem(path="interface", value=repr(error.interface), rule=error.reason))
                    if isinstance(error, CaptureForbidden):
                        break
        except NodeBusy as error:
            _discard(prepared)
            return Busy(reason=str(error))
        except BaseException:
            _discard(prepared)
            raise
        if not prepared:
            return Rejected(problems=tuple(problems))
        accepted = Accepted(
            captures=tuple(
                StartedCapture(capture_id=capture.capture_id, interface=capture.plan.interface)
                for capture in prepared
            ),
            problems=tuple(problems),
        )
        labels = replace(plans[0].labels, interface=None)
        self._reporter.report(self._events.event(verdict_payload(accepted), labels))
        for capture in prepared:
            self._hold(capture.capture_id, Deferred.fromCoroutine(self._flow(capture)))
        return accepted

    def _hold(self, capture_id: str, flow: Deferred[None]) -> None:
        def fault(failure: Failure) -> None:
            self._log.failure("{capture_id}: the capture met a fault", failure, capture_id=capture_id)

        def done(result: object) -> None:
            self._flows.discard(flow)

        self._flows.add(flow)
        flow.addErrback(fault)
        flow.addBoth(done)

    def _report(self, capture: ICapture, data: Payload) -> None:
        self._reporter.report(self._events.event(data, capture.plan.labels, capture.capture_id))

    async def _flow(self, capture: ICapture) -> None:
        """One capture, from its start until every destination has had its turn."""
        capture_id, plan = capture.capture_id, capture.plan
        self._admission.started(capture_id, plan.most_bytes)
        self._running.add(capture)
        self._captures.add(capture)
        try:
            recording = capture.start()
            self._report(
                capture,
                CaptureStarted(
                    bpf=plan.bpf,
                    snap_length=plan.snap_length,
                    limits=plan.limits,
                    started=self._wall_clock(),
                    link_type=capture.link_type,
                    alertstr=plan.request.alertstr,
                ),
            )
            try:
                recorded = await recording
            except (PcapsvcError, CancelledError) as error:
                self._report(capture, CaptureFailed(problem=str(error) or "given up"))
                return
            except Exception:  # noqa: BLE001 - one capture fails, and no other
                self._log.failure("{capture_id}: the capture met a fault", capture_id=capture_id)
                self._report(capture, CaptureFailed(problem=FAULT))
                return
            finally:
                self._running.discard(capture)
            try:
                self._admission.ended(capture_id, recorded.content.size)
                self._report(capture, _stopped(recorded, self._encoder.suffix))
                if recorded.packets:
                    await self._deliver(capture, recorded)
            finally:
                recorded.content.close()
        finally:
            self._running.discard(capture)
            self._admission.done(capture_id)
            self._report(capture, CaptureDone())

    async def _deliver(self, capture: ICapture, recorded: Recording) -> None:
        """Encode a recording and deliver it. If it can't be encoded, this capture fails, and no other."""
        capture_id = recorded.capture_id
        try:
            content = await self._encoder.encode(recorded)
        except (PcapsvcError, CancelledError) as error:
            problem = f"not encoded as {self._encoder.name}: {str(error) or 'cancelled'}"
            self._report(capture, CaptureFailed(problem=problem))
            return
        except Exception:  # noqa: BLE001 - one capture fails, and no other
            self._log.failure("{capture_id}: internal error in the encoder", capture_id=capture_id)
            self._report(capture, CaptureFailed(problem=FAULT))
            return
        if content is not recorded.content:
            recorded.content.close()
        suffix, media_type = self._encoder.suffix, self._encoder.media_type
        artifact = make_artifact(recorded, content, suffix=suffix, media_type=media_type)
        try:
            await self._delivery.deliver(artifact, lambda: self._let_go(capture_id, content))
        finally:
            content.close()

    def _let_go(self, capture_id: str, content: Content) -> None:
        """The capture is on disk: its memory is free for others."""
        content.close()
        self._admission.on_disk(capture_id)


def _stopped(recorded: Recording, suffix: str) -> CaptureStopped:
    return CaptureStopped(
        reason=recorded.reason,
        packets=recorded.packets,
        bytes=recorded.content.size,
        counts=recorded.counts,
        file=file_name(recorded, suffix) if recorded.packets else None,
    )


def _discard(captures: Sequence[ICapture]) -> None:
    for capture in captures:
        capture.discard()
