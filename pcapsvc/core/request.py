"""From the bytes of a message to a L{CaptureRequest} or a L{StopRequest}, or every reason why not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any

import msgspec

from pcapsvc.core.body import MAX_BODY_BYTES, Fields, OutOfRange
from pcapsvc.core.compression import ONE_OF_CHOICES
from pcapsvc.core.conditions import CONDITIONS, ConditionFields, condition_problems, filter_of
from pcapsvc.core.errors import Problem, RequestRejected, shown
from pcapsvc.core.fields import check_fields, fields_by_key, is_secret, misspelt
from pcapsvc.core.filter import NEWER_WORDS, follows_header_chains, names_needing_dns
from pcapsvc.core.history import LONGEST_SECONDS
from pcapsvc.core.label_values import LABEL_CHARACTERS, usable_label
from pcapsvc.core.labels import Labels
from pcapsvc.core.nothing import means_nothing, nothings_of
from pcapsvc.core.values import (
    AlertId,
    Aliases,
    Filter,
    Flag,
    Format,
    InterfaceNames,
    Label,
    Name,
    Pattern,
    Positive,
    RequestId,
    StoppedId,
)

__all__ = [
    "MAX_BODY_BYTES",
    "Address",
    "CaptureRequest",
    "OptionFields",
    "RequestBounds",
    "RequestFields",
    "StopRequest",
    "asks_to_be_logged",
    "filter_problems",
    "parse_request",
    "quick_address",
    "read_address",
    "read_labels",
]


class RequestFields(ConditionFields, frozen=True, kw_only=True):
    """
    The fields of a message that belong to no destination. Each is what the message says, or L{None}.

    C{timeout} (the idle time), C{duration} and C{before} (how far it looks back) are in seconds, C{bytes}
    and C{snap} in bytes.
    """

    node: Name | None = None
    nodere: Pattern | None = None
    requestid: RequestId | None = None
    interface: InterfaceNames | None = None
    alias: Aliases | None = None
    tags: Label | None = None
    bpf: Filter | None = None
    customer: Label | None = None
    snap: Positive | None = None
    packets: Positive | None = None
    alertid: AlertId | None = None
    alertstr: AlertId | None = None
    timeout: Positive | None = None
    duration: Positive | None = None
    bytes: Positive | None = None
    before: Positive | None = None
    pastonly: Flag | None = None
    beforeoptional: Flag | None = None
    rolling: Flag | None = None
    format: Format | None = None
    compress: Annotated[str, ONE_OF_CHOICES] | None = None
    packetdebug: Flag | None = None
    logrequest: Flag | None = None


class CaptureRequest(RequestFields, frozen=True, kw_only=True):
    """
    A request as its sender wrote it.

    @ivar options: what it says of each destination: its fields, by the destination's name. A
        destination of which it says nothing is left out.
    @ivar warnings: the labels that can't be used as the sender wrote them, and were changed or left out.
    """

    options: Mapping[str, Mapping[str, Any]] = msgspec.field(default_factory=dict)
    warnings: tuple[Problem, ...] = ()

    @property
    def filter(self) -> str:
        """Which packets it wants, as a filter of pcap-filter(7); empty for every packet."""
        return filter_of(self._conditions, self.bpf or "")

    @property
    def filter_fields(self) -> tuple[str, ...]:
        """The fields that the filter is from."""
        return (*self._conditions, *(["bpf"] if self.bpf else []))

    @property
    def _conditions(self) -> Mapping[str, Any]:
        return {name: value for name in CONDITIONS if (value := getattr(self, name)) is not None}


class StopRequest(msgspec.Struct, frozen=True, kw_only=True):
    """
    A request to end the captures of another one.

    @ivar stop: the C{requestid} of the other one.
    """

    node: Name | None = None
    nodere: Pattern | None = None
    stop: StoppedId


class OptionFields(msgspec.Struct, frozen=True, kw_only=True):
    """
    The fields of a message that belong to one destination. In the message, they stand beside all others.

    @ivar destination: the destination's name.
    @ivar structure: the fields and their types. All of them are optional.
    @ivar check: the operator's rules for the values, by field. L{None} if this node delivers nothing to
        the destination: then the fields have no effect, and only their types are checked.
    @ivar check_several: the rules for the values if a request captures on this many interfaces, if there are
        any.
    """

    destination: str
    structure: type[msgspec.Struct]
    check: Callable[[Mapping[str, Any]], Iterable[Problem]] | None = None
    check_several: Callable[[Mapping[str, Any], int], Iterable[Problem]] | None = None

    def of(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the values that belong to this destination."""
        return {name: values[name] for name in self.structure.__struct_fields__ if name in values}


class RequestBounds(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """
    The limits of requests on this node.

    @ivar max_timeout_seconds: of the idle time.
    @ivar max_duration_seconds: of the whole capture.
    @ivar max_filter_characters: the cost of compiling a filter grows with the cube of its length.
    @ivar aliases: those of the interfaces of this node.
    @ivar formats: the formats of files that there are; empty if that isn't known.
    @ivar options: the fields that belong to destinations. Destinations may share a field of the same type.
    """

    max_packets: int
    max_bytes: int
    max_timeout_seconds: int
    max_duration_seconds: int
    max_snap_length: int
    max_filter_characters: int
    aliases: frozenset[str] = frozenset()
    formats: tuple[str, ...] = ()
    options: tuple[OptionFields, ...] = ()

    def __post_init__(self) -> None:
        # A destination whose fields contradict another's must not wait for the first request.
        _ = self.message

    @cached_property
    def message(self) -> type[msgspec.Struct]:
        """All fields that a message may have on this node."""
        types: dict[str, Any] = {}
        for options in self.options:
            for field in msgspec.structs.fields(options.structure):
                taken = field.name in (*RequestFields.__struct_fields__, *StopRequest.__struct_fields__)
                if taken or types.setdefault(field.name, field.type) != field.type:
                    raise TypeError(f"{options.destination}: {field.name!r} is another field already")
        fields = [(name, kind, None) for name, kind in (("stop", StoppedId), *types.items())]
        return msgspec.defstruct("Message", fields, bases=(RequestFields,), frozen=True, kw_only=True)

    @cached_property
    def secret_fields(self) -> tuple[str, ...]:
        """The fields whose values are never shown."""
        return tuple(name for name, field in fields_by_key(self.message).items() if is_secret(field.type))

    @cached_property
    def most(self) -> Mapping[str, int]:
        """The limits of numbers, by field."""
        return {
            "packets": self.max_packets,
            "bytes": self.max_bytes,
            "timeout": self.max_timeout_seconds,
            "duration": self.max_duration_seconds,
            "snap": self.max_snap_length,
            "before": LONGEST_SECONDS,
        }

    def too_large(self, field: str, value: object) -> Problem:
        """The problem that a field's value exceeds its limit."""
        return Problem(
            path=field, value=shown(value), rule=f"must be at most {self.most[field]} on this node"
        )

    @cached_property
    def nothing(self) -> Mapping[str, tuple[Any, ...]]:
        """The values that mean the same as leaving a field out, by field."""
        return nothings_of(self.message)


class Address(msgspec.Struct, frozen=True):
    """The part of a message that says for which nodes it is, not validated."""

    node: Any = None
    nodere: Any = None


_address_decoder = msgspec.json.Decoder(Address)
_ADDRESS = frozenset(Address.__struct_fields__)
_LABELS = frozenset({"requestid", "alertid", "customer", "tags"})
_LOGGING = frozenset({"logrequest"})


def quick_address(body: bytes) -> Address | None:
    """
    Read the address of a message, and nothing else: in a fleet, nearly every
    message is for others, and must cost next to nothing.

    @return: L{None} if it takes L{read_address} to find it.
    """
    if len(body) > MAX_BODY_BYTES:
        return None
    try:
        address = _address_decoder.decode(body)
    except (ValueError, RecursionError):
        return None
    return address if address.node or address.nodere else None


def read_address(body: bytes) -> Address:
    """
    Read the address of a message, even if its keys are in another case, or if the message contains text
    that is not Unicode. A body of 64 KiB may take some milliseconds.

    @raise RequestRejected: if C{body} is not a JSON object.
    """
    address = quick_address(body)
    if address is not None:
        return address
    fields = Fields(body, _ADDRESS)
    return Address(**{name: fields.value(name) for name in _ADDRESS & fields.keys})


def read_labels(body: bytes, via: str) -> Labels:
    """
    Read the labels of a message that need not be valid, as L{parse_request} would. Never raises.

    @param via: the name of the source that the message arrived through.
    """
    try:
        values = _usable_labels(Fields(body, _LABELS), _LABELS)[0]
    except RequestRejected:
        return Labels(via=via)
    return Labels(via=via, **values)


def asks_to_be_logged(body: bytes) -> bool:
    """
    Whether a message wants to be logged, even if it is to be rejected.

    @raise RequestRejected: if C{body} is not a JSON object.
    """
    fields = Fields(body, _LOGGING)
    return "logrequest" in fields.keys and fields.value("logrequest") is True


def _usable_labels(fields: Fields, names: Collection[str]) -> tuple[dict[str, Any], list[Problem]]:
    """The labels that are given, by name, and the warnings about them."""
    values: dict[str, Any] = {}
    warnings: list[Problem] = []
    for name in fields.keys:
        if name in names:
            value, wrong = fields.label(name)
            if not means_nothing(value, _GENERAL_NOTHINGS[name]):
                usable, problems = usable_label(name, value, wrong)
                warnings += problems
                if usable is not None:
                    values[name] = usable
    return values, warnings


def parse_request(
    body: bytes, bounds: RequestBounds, *, ignore_unknown: bool = False, found: Sequence[Problem] = ()
) -> CaptureRequest | StopRequest:
    """
    Parse a message, and check every rule that needs only the message and the node's bounds. One that says
    C{stop} is a L{StopRequest}.

    C{null}, and what the original took as "not given", has the same meaning as leaving the field out: an
    empty string or list, and 0 for numbers other than a limit of packets.

    @param ignore_unknown: ignore unknown keys, instead of rejecting the message.
    @param found: problems that were found already, to be reported with the others.

    @raise RequestRejected: with every problem, by field.
    """
    known = bounds.message.__struct_fields__
    fields = Fields(body, known)
    if "stop" in fields.keys and not means_nothing(fields.value("stop"), bounds.nothing["stop"]):
        return _parse_stop(fields, bounds, ignore_unknown=ignore_unknown, found=found)
    labels, warnings = _usable_labels(fields, LABEL_CHARACTERS)
    given = {
        # The value of an unknown key has no meaning, and isn't decoded.
        key: fields.value(key) if key in known else ...
        for key in fields.keys
        if key not in LABEL_CHARACTERS
    }
    meant = {key: value for key, value in given.items() if not means_nothing(value, bounds.nothing.get(key))}
    # What has too many digits to be decoded is too large, and not no number.
    large = {key: value for key, value in meant.items() if key in bounds.most and _is_large(value)}
    checked = {key: value for key, value in meant.items() if key not in large}
    values, problems = check_fields(bounds.message, {**checked, **labels}, ignore_unknown=ignore_unknown)
    problems = [
        *found,
        *problems,
        *_stop_not_given(fields, meant),
        *(bounds.too_large(key, value) for key, value in large.items()),
        *_rules_broken(values, bounds, meant),
    ]
    if problems:
        raise RequestRejected(problems)
    if "bpf" in values:
        # For libpcap's scanner, spaces, tabs and line feeds are white space.
        values["bpf"] = values["bpf"].replace("\r", " ")
    return CaptureRequest(
        warnings=tuple(warnings),
        **{name: values[name] for name in RequestFields.__struct_fields__ if name in values},
        options={fields.destination: said for fields in bounds.options if (said := fields.of(values))},
    )


def _stop_not_given(fields: Fields, meant: Collection[str]) -> Iterator[Problem]:
    """With an empty C{stop}, and nothing to capture on, a message was probably meant to stop a request."""
    if "stop" in fields.keys and {"interface", "alias"}.isdisjoint(meant):
        yield Problem(
            path="stop",
            value=shown(fields.value("stop")),
            rule="is not given, so this is a request to capture",
        )


def _parse_stop(
    fields: Fields, bounds: RequestBounds, *, ignore_unknown: bool, found: Sequence[Problem]
) -> StopRequest:
    """
    Parse a message that says C{stop}. Whatever a request to capture may say is a problem beside it: the
    message may be meant for either.
    """
    known = bounds.message.__struct_fields__
    given = {key: _any_value(fields, key) if key in known else ... for key in fields.keys}
    meant = {key: value for key, value in given.items() if not means_nothing(value, bounds.nothing.get(key))}
    beside = [key for key in meant if key in known and key not in StopRequest.__struct_fields__]
    values, problems = check_fields(
        StopRequest,
        {key: value for key, value in meant.items() if key not in beside},
        ignore_unknown=ignore_unknown,
    )
    problems = [
        *found,
        *problems,
        *(Problem(path=key, rule="can't be given together with 'stop'") for key in beside),
        *_exactly_one(meant, "node", "nodere"),
    ]
    if problems:
        raise RequestRejected(problems)
    return StopRequest(**values)


def _any_value(fields: Fields, name: str) -> Any:
    return fields.label(name)[0] if name in LABEL_CHARACTERS else fields.value(name)


_GENERAL_NOTHINGS = nothings_of(RequestFields)


def _is_large(value: object) -> bool:
    return isinstance(value, OutOfRange) and value.is_large


# What would end a rolling capture, which goes on until it is ended.
_NOT_ROLLING = ("packets", "timeout", "pastonly")


def _rules_broken(
    values: Mapping[str, Any], bounds: RequestBounds, meant: Mapping[str, Any]
) -> Iterator[Problem]:
    yield from _exactly_one(meant, "node", "nodere")
    yield from _exactly_one(meant, "interface", "alias", misspelt=misspelt(bounds.message, meant))
    for flag in ("pastonly", "beforeoptional"):
        if values.get(flag) and "before" not in meant:
            yield Problem(path=flag, rule="has no effect without 'before'")
    if values.get("rolling"):
        for key in _NOT_ROLLING:
            if key in meant and values.get(key) is not False:
                yield Problem(path=key, rule="can't be given together with 'rolling'")
    if "alias" in values:
        yield from _aliases_unknown(values["alias"], bounds.aliases)
    if "format" in values and bounds.formats and values["format"] not in bounds.formats:
        rule = f"must be one of {', '.join(bounds.formats)} on this node"
        yield Problem(path="format", value=shown(values["format"]), rule=rule)
    for field, most in bounds.most.items():
        if values.get(field, 0) > most:
            yield bounds.too_large(field, values[field])
    bpf = values.get("bpf", "")
    yield from filter_problems(bpf, bounds.max_filter_characters)
    yield from condition_problems(values, bpf, bounds.max_filter_characters)
    for fields in bounds.options:
        if fields.check is not None:
            yield from fields.check(fields.of(values))


def _exactly_one(
    meant: Mapping[str, Any], one: str, other: str, *, misspelt: Collection[str] = ()
) -> Iterator[Problem]:
    """By what the message has, so that a field that is invalid, or misspelt, isn't called missing."""
    count = sum(key in meant for key in (one, other))
    if count != 1 and (count > 0 or {one, other}.isdisjoint(misspelt)):
        found = "neither is" if count == 0 else "both are"
        yield Problem(path=one, rule=f"exactly one of {one!r} and {other!r} must be given, but {found}")


def _aliases_unknown(aliases: Sequence[str], known: frozenset[str]) -> Iterator[Problem]:
    """One known alias is enough: a message is for many nodes, and not every node has every alias."""
    if known.isdisjoint(aliases):
        rule = f"must name an alias of this node (it has: {', '.join(sorted(known)) or 'none'})"
        yield Problem(path="alias", value=shown(list(aliases)), rule=rule)


def filter_problems(bpf: str, most: int) -> Iterator[Problem]:
    """
    What is wrong with a filter, as far as that shows before it is compiled.

    @param most: how many characters it may have.
    """
    if len(bpf) > most:
        yield Problem(path="bpf", rule=f"must have up to {most} characters on this node, and has {len(bpf)}")
        return
    if follows_header_chains(bpf):
        yield Problem(path="bpf", value=shown("protochain"), rule="can't be used: the kernel can't run it")
    for name in names_needing_dns(bpf):
        rule = "is neither a keyword of pcap-filter(7) nor an address; host names are not looked up"
        if name in NEWER_WORDS:
            rule = "can't be used: it needs a newer libpcap"
        yield Problem(path="bpf", value=shown(name), rule=rule)
