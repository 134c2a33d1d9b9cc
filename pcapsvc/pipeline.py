"""The whole flow: a message is judged, its captures run, and their files are delivered."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping

import msgspec
from msgspec.structs import replace
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pcapsvc.core.admission import Admission
from pcapsvc.core.artifact import file_name, make_artifact
from pcapsvc.core.errors import FAULT, STOPPED, PcapsvcError, Problem, RequestRejected
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
from pcapsvc.core.recording import Content, Recording
from pcapsvc.core.request import StopRequest, read_labels
from pcapsvc.core.result import Accepted, Busy, Ended, Rejected, StartedCapture, Verdict
from pcapsvc.core.session import StopReason
from pcapsvc.generated_file import GeneratedFile
from pcapsvc.interfaces.capture import ICapture, ICapturer
from pcapsvc.interfaces.captures import ICaptureFiles, ICaptureRegistry
from pcapsvc.interfaces.delivery import IDelivery, IEncoder
from pcapsvc.interfaces.reports import IReporter
from pcapsvc.interfaces.requests import IRequestSink
from pcapsvc.judge import NOT_FOR_THIS_NODE, Admitted, Judge
from pcapsvc.preparation import prepare_all

_STOPPING = "the daemon is stopping"


@implementer(IRequestSink)
class Pipeline(Service):
    """
    What happens to every request.

    @param judge: decides on requests.
    @param capturer: prepares the captures of a request.
    @param encoders: make the file that is delivered from a recording, by the names of their formats.
    @param delivery: delivers files to the destinations.
    @param reporter: receives the events of requests and captures.
    @param events: makes the events.
    @param captures: knows the captures that are running.
    @param files: knows the files of captures, as long as they are in memory.
    @param admission: knows how much room there is.
    @param wall_clock: the time in seconds since the Unix epoch.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        judge: Judge,
        capturer: ICapturer,
        encoders: Mapping[str, IEncoder],
        delivery: IDelivery,
        reporter: IReporter,
        events: EventFactory,
        captures: ICaptureRegistry,
        files: ICaptureFiles,
        admission: Admission,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._judge = judge
        self._capturer = capturer
        self._encoders = encoders
        self._delivery = delivery
        self._reporter = reporter
        self._events = events
        self._captures = captures
        self._files = files
        self._admission = admission
        self._wall_clock = wall_clock
        self._running: set[ICapture] = set()
        self._flows: set[Deferred[None]] = set()
        # The verdicts that have not fired, and the end of each; and how many there are, by source.
        self._verdicts: dict[Deferred[Verdict], Deferred[None]] = {}
        self._pending: Counter[str] = Counter()
        # The requests whose captures are being prepared.
        self._preparing: set[_Preparing] = set()

    def startService(self) -> None:
        """Accept requests."""
        super().startService()  # type: ignore[no-untyped-call]
        self._judge.open()

    def stopService(self) -> Deferred[None]:
        """
        Refuse requests, as C{refuse} does, and end every capture with the packets that it has.

        @return: fires when every delivery has succeeded or failed; on cancel, those in progress are given up.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        flows = [*self._flows, *self._verdicts.values()]
        self.refuse()
        for capture in list(self._running):
            capture.end(StopReason.SHUTDOWN)
        done = DeferredList(flows, consumeErrors=True)

        def give_up(_: object) -> None:
            for flow in flows:
                flow.cancel()

        waited: Deferred[None] = Deferred(give_up)
        done.addCallback(lambda _: None if waited.called else waited.callback(None))
        return waited

    @property
    def is_open(self) -> bool:
        """Whether requests are admitted."""
        return bool(self.running) and self._judge.is_open

    def refuse(self) -> None:
        """From here on, answer requests with L{Busy}; likewise those whose captures are being prepared."""
        self._judge.close(_STOPPING)
        for verdict in list(self._verdicts):
            verdict.cancel()

    def submit(self, message: Message) -> Deferred[Verdict]:
        """Judge a request, and start its captures: see L{IRequestSink.submit}."""
        # One turn of the reactor may bring any number of requests.
        self._capturer.keep_up()
        try:
            judged = self._judge.judge(message, self._pending)
            # In a fleet nearly every message is for other nodes.
            if judged is NOT_FOR_THIS_NODE:
                return succeed(judged)
        except RequestRejected as rejection:
            judged = Rejected(problems=rejection.problems)
        except Exception:  # noqa: BLE001 - one request fails, and no other
            judged = self._internal_error(message)
        if isinstance(judged, Admitted):
            return self._await(message, Deferred.fromCoroutine(self._begin(message, judged)))
        if isinstance(judged, StopRequest):
            return succeed(self._end_captures(judged.stop, message.source))
        self._report_refusal(message, judged)
        return succeed(judged)

    def _await(self, message: Message, verdict: Deferred[Verdict]) -> Deferred[Verdict]:
        """Hold a verdict that may take a while, and see to it that it never fails."""
        ended: Deferred[None] = Deferred()

        def fired(result: Verdict | Failure) -> Verdict:
            if isinstance(result, Failure):
                result = self._internal_error(message, result)
            self._report_refusal(message, result)
            return result

        def end(result: Verdict) -> Verdict:
            del self._verdicts[verdict]
            self._pending[message.source] -= 1
            ended.callback(None)
            return result

        verdict.addBoth(fired)
        if not verdict.called:
            self._verdicts[verdict] = ended
            self._pending[message.source] += 1
            verdict.addCallback(end)
        return verdict

    def _internal_error(self, message: Message, failure: Failure | None = None) -> Rejected:
        self._log.failure("a request from {source} could not be judged", failure, source=message.source)
        return Rejected(problems=(Problem(path="request", rule=f"caused an {FAULT}"),))

    def _report_refusal(self, message: Message, verdict: Verdict) -> None:
        if isinstance(verdict, Rejected | Busy):
            labels = read_labels(message.body, message.source)
            self._reporter.report(self._events.event(verdict_payload(verdict), labels))

    def _end_captures(self, request_id: str, source: str) -> Ended:
        """End every capture of a request; those that are being prepared, as soon as they start."""
        for preparing in self._preparing:
            if preparing.request_id == request_id:
                preparing.stopped_by = source
        ended = [each for each in self._running if each.plan.labels.requestid == request_id]
        for capture in ended:
            self._end_by_request(capture, source)
        return Ended(captures=tuple(map(_started, ended)))

    def _end_by_request(self, capture: ICapture, source: str) -> None:
        self._log.info(
            "{capture_id}: ended by a request from {source}", capture_id=capture.capture_id, source=source
        )
        capture.end(StopReason.CANCELLED)

    async def _begin(self, message: Message, admitted: Admitted) -> Verdict:
        """Prepare all captures before any starts: if one interface refuses the filter, none starts."""
        plans, reservation = admitted.plans, admitted.reservation
        labels = replace(plans[0].labels, interface=None)
        preparing = _Preparing(request_id=labels.requestid)
        self._preparing.add(preparing)
        try:
            prepared = await prepare_all(self._capturer, plans)
            self._judge.took(message.source, prepared.compile_seconds)
            if prepared.verdict is not None:
                return prepared.verdict if self._judge.is_open else Busy(reason=_STOPPING)
            accepted = Accepted(
                captures=tuple(map(_started, prepared.captures)),
                filter=plans[0].bpf,
                problems=prepared.problems,
                warnings=plans[0].warnings,
            )
            self._reporter.report(self._events.event(verdict_payload(accepted), labels))
            for capture in prepared.captures:
                reservation.started(capture.capture_id)
                self._hold(capture.capture_id, Deferred.fromCoroutine(self._flow(capture)))
                if preparing.stopped_by is not None:
                    self._end_by_request(capture, preparing.stopped_by)
            return accepted
        finally:
            self._preparing.discard(preparing)
            reservation.release()

    def _hold(self, capture_id: str, flow: Deferred[None]) -> None:
        def failed(failure: Failure) -> None:
            self._log.failure("{capture_id}: internal error", failure, capture_id=capture_id)

        self._flows.add(flow)
        flow.addErrback(failed)
        flow.addBoth(lambda _: self._flows.discard(flow))

    def _report(self, capture: ICapture, data: Payload) -> None:
        self._reporter.report(self._events.event(data, capture.plan.labels, capture.capture_id))

    async def _flow(self, capture: ICapture) -> None:
        """One capture, from its start until its delivery is complete."""
        capture_id, plan = capture.capture_id, capture.plan
        self._running.add(capture)
        self._captures.add(capture)
        try:
            recording = capture.start()
            self._files.begin(capture)
            self._report(
                capture,
                CaptureStarted(
                    bpf=plan.bpf,
                    snap_length=plan.snap_length,
                    limits=plan.limits,
                    started=self._wall_clock(),
                    link_type=capture.link_type,
                    alertstr=plan.request.alertstr,
                    history=capture.past,
                    rolling=capture.progress().rolling if plan.limits.is_rolling else None,
                ),
            )
            recorded = None
            try:
                recorded = await recording
            except (PcapsvcError, CancelledError) as error:
                self._report(capture, CaptureFailed(problem=str(error) or "given up"))
                return
            except Exception:  # noqa: BLE001 - one capture fails, and no other
                self._log.failure("{capture_id}: internal error", capture_id=capture_id)
                self._report(capture, CaptureFailed(problem=FAULT))
                return
            finally:
                self._running.discard(capture)
                if recorded is None:
                    self._files.fail(capture_id)
            recorded = replace(recorded, content=self._files.end(capture_id, recorded.content))
            try:
                self._admission.ended(capture_id, recorded.content.size)
                self._report(capture, _stopped(recorded, self._encoders[plan.format].suffix))
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
        capture_id, encoder = recorded.capture_id, self._encoders[recorded.plan.format]
        try:
            content = await encoder.encode(recorded)
        except (PcapsvcError, CancelledError) as error:
            problem = f"not encoded as {encoder.name}: {str(error) or STOPPED}"
            self._report(capture, CaptureFailed(problem=problem))
            return
        except Exception:  # noqa: BLE001 - one capture fails, and no other
            self._log.failure("{capture_id}: internal error in the encoder", capture_id=capture_id)
            self._report(capture, CaptureFailed(problem=FAULT))
            return
        if content is not recorded.content and not isinstance(content, GeneratedFile):
            recorded.content.close()
            self._admission.holds(capture_id, content.size)
        artifact = make_artifact(recorded, content, suffix=encoder.suffix, media_type=encoder.media_type)
        try:
            await self._delivery.deliver(artifact, lambda: self._release(capture_id, content))
        finally:
            content.close()

    def _release(self, capture_id: str, content: Content) -> None:
        """The file is on disk, or not needed any more: its memory is free for others."""
        content.close()
        self._admission.on_disk(capture_id)


class _Preparing(msgspec.Struct, kw_only=True, eq=False):
    """
    A request whose captures are being prepared.

    @ivar stopped_by: the source of a request to stop it; L{None} if there was none.
    """

    request_id: str | None
    stopped_by: str | None = None


def _started(capture: ICapture) -> StartedCapture:
    return StartedCapture(capture_id=capture.capture_id, interface=capture.plan.interface)


def _stopped(recorded: Recording, suffix: str) -> CaptureStopped:
    name = file_name(recorded.plan, recorded.started, recorded.capture_id, suffix)
    return CaptureStopped(
        reason=recorded.reason,
        packets=recorded.packets,
        bytes=recorded.content.size,
        counts=recorded.counts,
        file=name if recorded.packets else None,
        history=recorded.past,
        rolling=recorded.rolling,
    )


class Intake(Service):
    """
    Stops together with the sources, so that they get the verdicts that they are waiting for.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def stopService(self) -> None:
        """Refuse requests from here on."""
        super().stopService()  # type: ignore[no-untyped-call]
        self._pipeline.refuse()
