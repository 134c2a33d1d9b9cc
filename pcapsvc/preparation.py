"""The captures of one request, prepared side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred, DeferredList, DeferredSemaphore
from twisted.logger import Logger
from twisted.python.failure import Failure

from pcapsvc.core.errors import (
    FAULT,
    NO_SUCH_INTERFACE,
    CaptureForbidden,
    CaptureUnavailable,
    NodeBusy,
    Problem,
    RequestRejected,
    shown,
)
from pcapsvc.core.filter import FilterRejected
from pcapsvc.core.plan import CapturePlan
from pcapsvc.core.result import Busy, Rejected
from pcapsvc.interfaces.capture import ICapture, ICapturer

#: How many captures of a request are prepared at a time, and so how many threads one request may occupy.
AT_ONCE = 4

_log = Logger()

# After one of these, none of the others can succeed, or is wanted.
_ENDS_ALL = (RequestRejected, NodeBusy, CaptureForbidden, CancelledError)


class Preparation(msgspec.Struct, frozen=True, kw_only=True):
    """
    The result of preparing the captures of a request.

    @ivar captures: to be started.
    @ivar problems: of the interfaces that can't be captured on.
    @ivar verdict: why there are no captures; L{None} if there are.
    @ivar compile_seconds: how long other processes were busy with the filters.
    """

    captures: tuple[ICapture, ...] = ()
    problems: tuple[Problem, ...] = ()
    verdict: Rejected | Busy | None = None
    compile_seconds: float = 0.0


async def prepare_all(capturer: ICapturer, plans: Sequence[CapturePlan]) -> Preparation:
    """
    Prepare all captures of a request. If the request can't be done, none stays open.

    @return: fires with the result. On cancel, its verdict is L{Busy}.
    """
    places = DeferredSemaphore(AT_ONCE)
    preparing: list[Deferred[ICapture]] = [places.run(capturer.prepare, plan) for plan in plans]

    def failed(failure: Failure) -> Failure:
        if failure.check(*_ENDS_ALL):  # type: ignore[no-untyped-call]
            for other in preparing:
                other.cancel()
        return failure

    for one in preparing:
        one.addErrback(failed)
    results = [result for _, result in await DeferredList(preparing, consumeErrors=True)]
    captures = tuple(result for result in results if not isinstance(result, Failure))
    errors: list[Any] = [result.value for result in results if isinstance(result, Failure)]
    seconds = sum(capture.compile_seconds for capture in captures) + sum(
        error.compile_seconds for error in errors if isinstance(error, FilterRejected)
    )
    problems, verdict = _weighed(errors, plans)
    if verdict is None and not captures:
        verdict = Rejected(problems=problems)
    if verdict is not None:
        for capture in captures:
            capture.discard()
        return Preparation(verdict=verdict, compile_seconds=seconds)
    return Preparation(captures=captures, problems=problems, compile_seconds=seconds)


def _weighed(
    errors: Sequence[BaseException], plans: Sequence[CapturePlan]
) -> tuple[tuple[Problem, ...], Rejected | Busy | None]:
    """The problems of single interfaces, and the verdict if the whole request fails."""
    filter_fields = plans[0].request.filter_fields
    aliases = {plan.interface for plan in plans if plan.is_alias_too}
    problems: list[Problem] = []
    forbidden = False
    for error in errors:
        if isinstance(error, FilterRejected):
            return (), Rejected(problems=error.problems_of(filter_fields))
        if isinstance(error, RequestRejected):
            return (), Rejected(problems=error.problems)
        if isinstance(error, CaptureUnavailable) and not forbidden:
            rule = error.reason
            if rule == NO_SUCH_INTERFACE and error.interface in aliases:
                rule = f"{rule}; it is an alias: give it as 'alias'"
            problems.append(Problem(path="interface", value=shown(error.interface), rule=rule))
            # It is the same on all interfaces.
            forbidden = isinstance(error, CaptureForbidden)
    for error in errors:
        if isinstance(error, NodeBusy):
            return (), Busy(reason=str(error))
        if not isinstance(error, CaptureUnavailable | CancelledError):
            _log.failure("a capture could not be prepared", Failure(error))  # type: ignore[no-untyped-call]
            return (), Rejected(problems=(Problem(path="request", rule=f"caused an {FAULT}"),))
    if not forbidden and any(isinstance(error, CancelledError) for error in errors):
        return (), Busy(reason="the request was given up")
    return tuple(problems), None
