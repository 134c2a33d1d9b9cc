"""C{/filters}: whether a filter can be used, without a capture."""

# twisted.web has hardly any types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime

from pcapsvc.core.body import Fields
from pcapsvc.core.conditions import CONDITIONS, ConditionFields, condition_problems, filter_of
from pcapsvc.core.errors import CaptureUnavailable, NodeBusy, Problem, RequestRejected, shown
from pcapsvc.core.fields import check_fields, misspelt, rule_of
from pcapsvc.core.filter import FilterRejected
from pcapsvc.core.nothing import means_nothing, nothings_of
from pcapsvc.core.rate import RequestRate
from pcapsvc.core.request import filter_problems
from pcapsvc.core.values import Filter, one_line
from pcapsvc.interfaces.capture import IHostInterfaces
from pcapsvc.net.http_problems import busy, request_rejected
from pcapsvc.net.http_resource import Answer, HTTPProblem, Resource

#: How long a filter may take here, in seconds: an answer is sent within five.
ANSWER_SECONDS = 4.5
#: How many filters are compiled at once here. Captures need the compiler as well.
MOST_AT_ONCE = 4

#: When a client may try again, in seconds.
RETRY_AFTER_SECONDS = 1

# What the rate limit calls this.
_HERE = "POST /filters"
# struct bpf_insn of net/bpf.h.
_INSTRUCTION_BYTES = 8


# The name, or an alias, of an interface. A request has a list of them, so the rule says that this is none.
_OneInterface = Annotated[str, one_line(255, "one name, not a list: text")]


class _FilterFields(ConditionFields, frozen=True, kw_only=True):
    bpf: Filter | None = None
    interface: _OneInterface | None = None


_NOTHINGS = nothings_of(_FilterFields)


class _Question(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a client asks.

    @ivar conditions: the fields that say in plain words which packets.
    @ivar bpf: a filter of pcap-filter(7) beside them.
    """

    conditions: Mapping[str, Any]
    bpf: str
    interface: str | None

    @property
    def filter(self) -> str:
        return filter_of(self.conditions, self.bpf)

    def blamed(self, rejection: FilterRejected) -> Sequence[Problem]:
        """The problems of a filter, with the field that is at fault."""
        return rejection.problems_of([*self.conditions, *(["bpf"] if self.bpf else [])])


class Filters(Resource):
    """
    Compiles filters, and answers whether they can be used.

    @param interfaces_by_alias: the names of the interfaces that carry an alias.
    @param snap_length: of captures that ask for none, in bytes.
    @param max_characters: how long a filter may be.
    @param rate: how many filters a second there may be, and how much time they may take.
    """

    allowedMethods = (b"POST",)

    def __init__(
        self,
        reactor: IReactorTime,
        host: IHostInterfaces,
        *,
        interfaces_by_alias: Mapping[str, Sequence[str]],
        snap_length: int,
        max_characters: int,
        rate: RequestRate,
    ) -> None:
        super().__init__()
        self._reactor = reactor
        self._host = host
        self._interfaces_by_alias = interfaces_by_alias
        self._snap_length = snap_length
        self._max_characters = max_characters
        self._rate = rate
        self._at_work = 0

    async def render_POST(self, request: Any) -> Answer:
        """See L{Resource}. A client that disconnects ends the work."""
        if self._rate.refusal(_HERE, self._reactor.seconds()) is not None:
            detail = "Filters arrive too fast, or the last ones took too much time to compile."
            raise HTTPProblem(429, detail, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})
        asked, problems = _read(request.content.read())
        broken = [
            *filter_problems(asked.bpf, self._max_characters),
            *condition_problems(asked.conditions, asked.bpf, self._max_characters),
        ]
        if problems:
            raise request_rejected([*problems, *broken])
        if broken:
            return _invalid(broken)
        if self._at_work >= MOST_AT_ONCE:
            raise _busy(f"{MOST_AT_ONCE} filters are being compiled for others")
        self._at_work += 1
        try:
            return await self._compile(request, asked)
        finally:
            self._at_work -= 1

    async def _compile(self, request: Any, asked: _Question) -> Answer:
        began = self._reactor.seconds()
        work = Deferred.fromCoroutine(self._compile_on_all(asked))
        request.notifyFinish().addErrback(lambda _: work.cancel())
        try:
            return await work.addTimeout(ANSWER_SECONDS, self._reactor)
        except FilterRejected as rejection:
            self._rate.took(_HERE, rejection.compile_seconds)
            return _invalid(asked.blamed(rejection), asked.filter)
        except RequestRejected as rejection:
            return _invalid(rejection.problems, asked.filter)
        except CaptureUnavailable as unavailable:
            rule = f"can't be used: {unavailable}"
            problem = Problem(path="interface", value=shown(asked.interface), rule=rule)
            return _invalid([problem], asked.filter)
        except (NodeBusy, OSError) as error:
            raise _busy(str(error)) from None
        except (TimeoutError, CancelledError):
            # How much of this it was compiled is not known.
            self._rate.took(_HERE, self._reactor.seconds() - began)
            reason = "it takes too long to compile, or had to wait for others"
            raise _busy(f"the filter was not compiled within {ANSWER_SECONDS:g} s: {reason}") from None

    async def _compile_on_all(self, asked: _Question) -> Answer:
        """Compile a filter for each interface that is meant."""
        bpf = asked.filter
        names: Sequence[str | None] = [asked.interface]
        if asked.interface is not None:
            names = self._interfaces_by_alias.get(asked.interface, names)
        instructions = 0
        for name in names:
            program = await self._host.compile_filter(name, snap_length=self._snap_length, bpf=bpf)
            self._rate.took(_HERE, program.compile_seconds)
            instructions = max(instructions, len(program.instructions) // _INSTRUCTION_BYTES)
        return Answer.json({"valid": True, "filter": bpf, "instructions": instructions})


def _read(body: bytes) -> tuple[_Question, Sequence[Problem]]:
    """
    What a client asks, as far as the fields have the right types, and the problems with the others.

    @raise HTTPProblem: if the body is not JSON.
    """
    try:
        fields = Fields(body, _FilterFields.__struct_fields__)
        given = {name: fields.value(name) for name in fields.keys}
    except RequestRejected as rejection:
        raise request_rejected(rejection.problems) from None
    meant = {
        # A filter that is null is a mistake here; an empty one matches every packet.
        name: value
        for name, value in given.items()
        if name == "bpf" or not means_nothing(value, _NOTHINGS.get(name))
    }
    values, problems = check_fields(_FilterFields, meant)
    if "bpf" in meant and meant["bpf"] is None:
        problems.append(Problem(path="bpf", value=shown(None), rule=f"must be {rule_of(Filter)}"))
    conditions = {name: value for name, value in values.items() if name in CONDITIONS}
    if not {*meant, *misspelt(_FilterFields, meant)} & {"bpf", *CONDITIONS}:
        problems.append(Problem(path="bpf", rule="must be given, or another field that says which packets"))
    # For libpcap's scanner, spaces, tabs and line feeds are white space.
    bpf = (values.get("bpf") or "").replace("\r", " ")
    return _Question(conditions=conditions, bpf=bpf, interface=values.get("interface")), problems


def _busy(reason: str) -> HTTPProblem:
    return busy(reason, retry_after_seconds=RETRY_AFTER_SECONDS)


def _invalid(problems: Sequence[Problem], bpf: str | None = None) -> Answer:
    """
    The answer that a filter can't be used.

    @param bpf: the filter; L{None} if the fields don't say what it is.
    """
    content = {"valid": False, "filter": bpf, "problems": [problem.as_mapping() for problem in problems]}
    return Answer.json(content)
