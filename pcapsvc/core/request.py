"""From the bytes of a message to a L{CaptureRequest}, or every reason why not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from pcapsvc.core.endpoint import EndpointError, endpoint_url
from pcapsvc.core.errors import Problem, RequestRejected, shown
from pcapsvc.core.fields import check_fields
from pcapsvc.core.filter import follows_header_chains, names_needing_dns
from pcapsvc.core.labels import Labels
from pcapsvc.core.values import (
    S3_FIELDS,
    Acl,
    AlertId,
    Aliases,
    Bucket,
    Filter,
    Flag,
    Folder,
    InterfaceNames,
    Label,
    Name,
    Pattern,
    Positive,
    Region,
    RequestId,
)

#: The longest body that is looked at, in bytes.
MAX_BODY_BYTES = 65536


class CaptureRequest(msgspec.Struct, frozen=True, kw_only=True):
    """
    A request as its sender gave it: each field is what the message holds, and
    L{None} where it holds none.

    C{timeout} (the idle time) and C{duration} are in seconds, C{bytes} and
    C{snap} in bytes.
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
    packetdebug: Flag | None = None
    logrequest: Flag | None = None
    folder: Folder | None = None
    bucket: Bucket | None = None
    acl: Acl | None = None
    region: Region | None = None
    endpoint: Name | None = None
    encryption: Flag | None = None


@dataclass(frozen=True, kw_only=True)
class RequestBounds:
    """
    How far a request may go on this node.

    @ivar max_timeout_seconds: of the idle time; L{max_duration_seconds}, of the whole.
    @ivar max_filter_characters: a filter's compilation costs grow with the cube of its length.
    @ivar aliases: of interfaces, that are known here.
    @ivar s3_overrides: which of L{S3_FIELDS} a request may set; L{None} where nothing is
        delivered to S3 here, so that they mean nothing.
    @ivar s3_endpoints: the endpoints (as URLs) that a request may name; empty for any.
    """

    max_packets: int
    max_bytes: int
    max_timeout_seconds: int
    max_duration_seconds: int
    max_snap_length: int
    max_filter_characters: int
    aliases: frozenset[str] = frozenset()
    s3_overrides: frozenset[str] | None = None
    s3_endpoints: tuple[str, ...] = ()


class Address(msgspec.Struct, frozen=True):
    """The part of a message that says for which nodes it is, unjudged."""

    node: Any = None
    nodere: Any = None


_NULL = msgspec.Raw(b"null")


class _Labels(msgspec.Struct, frozen=True):
    requestid: msgspec.Raw = _NULL
    alertid: msgspec.Raw = _NULL
    customer: msgspec.Raw = _NULL
    tags: msgspec.Raw = _NULL


class _Logging(msgspec.Struct, frozen=True):
    logrequest: Any = None


_Decoded = TypeVar("_Decoded")
_address_decoder = msgspec.json.Decoder(Address)
_labels_decoder = msgspec.json.Decoder(_Labels)
_logging_decoder = msgspec.json.Decoder(_Logging)
_object_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_value_decoder = msgspec.json.Decoder(Any)

# An escape sequence in JSON's text (RFC 8259, section 7): two that make one character, one that needs
# another beside it, or any other.
_ESCAPED = re.compile(
    rb"\\(?:u[Dd][89ABab][0-9A-Fa-f]{2}\\u[Dd][C-Fc-f][0-9A-Fa-f]{2}|(u[Dd][89A-Fa-f][0-9A-Fa-f]{2})|.)",
    re.DOTALL,
)


def read_address(body: bytes) -> Address:
    """
    Read the address of a message, and nothing else: with a fleet, nearly every
    message is for others, and must cost next to nothing.

    @raise RequestRejected: where C{body} is no JSON object at all.
    """
    return _decoded(body, _address_decoder)


def read_labels(body: bytes, via: str) -> Labels:
    """
    Read the labels of a message that need not be valid: those that are valid by themselves. Costs
    little, and never raises.

    @param via: the name of the source that the message arrived through.
    """
    try:
        found = _decoded(body, _labels_decoder)
        given = {name: _value(getattr(found, name)) for name in found.__struct_fields__}
    except RequestRejected:
        return Labels(via=via)
    values, _ = check_fields(
        CaptureRequest, {name: value for name, value in given.items() if not _means_nothing(name, value)}
    )
    return Labels(via=via, **values)


def asks_to_be_logged(body: bytes) -> bool:
    """
    Whether a message wants to be logged, also where it is to be refused.

    @raise RequestRejected: where C{body} is no JSON object at all.
    """
    return _decoded(body, _logging_decoder).logrequest is True


def parse_request(
    body: bytes, bounds: RequestBounds, *, ignore_unknown: bool = False, found: Sequence[Problem] = ()
) -> CaptureRequest:
    """
    Understand a message, and judge it by every rule that needs nothing but the
    message and the node's bounds.

    C{null}, and what the original took as "not given" (where a string or a list is
    due, an empty one, and 0 where a number is that is no limit of packets), is as
    if it were left out.

    @param ignore_unknown: pass over keys that are not known, instead of refusing them.
    @param found: problems that were found already, to be told with the others.

    @raise RequestRejected: with every problem, by field.
    """
    given = {key: _value(raw) for key, raw in _decoded(body, _object_decoder).items()}
    values, problems = check_fields(
        CaptureRequest,
        {key: value for key, value in given.items() if not _means_nothing(key, value)},
        ignore_unknown=ignore_unknown,
    )
    problems = [*found, *problems, *_rules_broken(values, bounds, given)]
    if problems:
        raise RequestRejected(problems)
    return CaptureRequest(**values)


def _decoded(body: bytes, decoder: msgspec.json.Decoder[_Decoded]) -> _Decoded:
    if len(body) > MAX_BODY_BYTES:
        raise _not_a_request(f"must be at most {MAX_BODY_BYTES} bytes long, and has {len(body)}")
    try:
        return decoder.decode(body)
    except (ValueError, RecursionError) as error:
        raise _not_json(body, error) from None


class _OutOfRange:
    """A value with a number that can't be held: too large, or of too many digits."""

    def __init__(self, raw: msgspec.Raw) -> None:
        self._text = bytes(raw).decode("utf-8", "replace")

    def __repr__(self) -> str:
        return repr(self._text)[1:-1]


def _value(raw: msgspec.Raw) -> Any:
    try:
        return _value_decoder.decode(raw)
    except msgspec.ValidationError:
        # It is no value of any field: each will say so by its own rule.
        return _OutOfRange(raw)
    except (ValueError, RecursionError) as error:
        raise _not_json(bytes(raw), error) from None


def _not_json(body: bytes, error: Exception) -> RequestRejected:
    if isinstance(error, UnicodeDecodeError):
        return _not_a_request("must be UTF-8")
    if isinstance(error, RecursionError):
        return _not_a_request("is nested too deeply")
    for escaped in _ESCAPED.finditer(body):
        if escaped[1] is not None:
            # msgspec finds it, and calls it by other names.
            return _not_a_request(
                f"must be Unicode, and has half of a surrogate pair: \\{escaped[1].decode()}"
            )
    return _not_a_request(f"must be a JSON object ({error})")


def _not_a_request(rule: str) -> RequestRejected:
    return RequestRejected([Problem(path="request", rule=rule)])


# What the original took as "not given", by field: the empty value of the field's own kind.
_NOTHING: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(CaptureRequest.__struct_fields__, (None,)),
    **dict.fromkeys(("node", "nodere", "requestid", "tags", "bpf", "customer"), (None, "")),
    **dict.fromkeys(("folder", "bucket", "acl", "region", "endpoint"), (None, "")),
    **dict.fromkeys(("interface", "alias"), (None, [])),
    **dict.fromkeys(("snap", "timeout", "duration", "bytes"), (None, 0)),
    **dict.fromkeys(("alertid", "alertstr"), (None, 0, "")),
}


def _means_nothing(key: str, value: Any) -> bool:
    return any(type(value) is type(nothing) and value == nothing for nothing in _NOTHING.get(key, ()))


def _rules_broken(
    values: Mapping[str, Any], bounds: RequestBounds, given: Mapping[str, Any]
) -> Iterator[Problem]:
    yield from _exactly_one(given, "node", "nodere")
    yield from _exactly_one(given, "interface", "alias")
    if "alias" in values:
        yield from _aliases_unknown(values["alias"], bounds.aliases)
    for field, most in (
        ("packets", bounds.max_packets),
        ("bytes", bounds.max_bytes),
        ("timeout", bounds.max_timeout_seconds),
        ("duration", bounds.max_duration_seconds),
        ("snap", bounds.max_snap_length),
    ):
        if values.get(field, 0) > most:
            yield Problem(path=field, value=shown(values[field]), rule=f"must be at most {most} on this node")
    if "bpf" in values:
        yield from _filter_rules_broken(values["bpf"], bounds.max_filter_characters)
    if bounds.s3_overrides is not None:
        yield from s3_rules_broken(values, bounds.s3_overrides, bounds.s3_endpoints)


def _exactly_one(given: Mapping[str, Any], one: str, other: str) -> Iterator[Problem]:
    """Judged by what the message holds, so that a field which is wrong in itself isn't called missing."""
    count = sum(not _means_nothing(key, given.get(key)) for key in (one, other))
    if count != 1:
        found = "none is" if count == 0 else "both are"
        yield Problem(path=one, rule=f"exactly one of {one!r} and {other!r} must be given, and {found}")


def _aliases_unknown(aliases: Sequence[str], known: frozenset[str]) -> Iterator[Problem]:
    """One that is known is enough: a message is for many nodes, and not every node has every alias."""
    if known.isdisjoint(aliases):
        rule = f"must name an alias of this node (it has: {', '.join(sorted(known)) or 'none'})"
        yield Problem(path="alias", value=shown(list(aliases)), rule=rule)


def _filter_rules_broken(bpf: str, most: int) -> Iterator[Problem]:
    if len(bpf) > most:
        yield Problem(
            path="bpf", rule=f"must be at most {most} characters long on this node, and has {len(bpf)}"
        )
        return
    if follows_header_chains(bpf):
        yield Problem(
            path="bpf", value=shown("protochain"), rule="is not for captures: the kernel can't run it"
        )
    for name in names_needing_dns(bpf):
        yield Problem(
            path="bpf",
            value=shown(name),
            rule="must be an address: names of hosts and networks are not looked up",
        )


def s3_rules_broken(
    values: Mapping[str, Any], allowed: frozenset[str], endpoints: tuple[str, ...]
) -> Iterator[Problem]:
    """
    What an operator doesn't let requests say of S3.

    @param values: by the request's field; other fields than L{S3_FIELDS} are passed over.
    @param allowed: the fields that may be given.
    @param endpoints: as in L{RequestBounds.s3_endpoints}.
    """
    for field in S3_FIELDS:
        if field in values and field not in allowed:
            yield Problem(
                path=field, value=shown(values[field]), rule="must not be set by a request on this node"
            )
    if "endpoint" in values and "endpoint" in allowed:
        try:
            url = endpoint_url(values["endpoint"])
        except EndpointError as error:
            yield Problem(path="endpoint", value=shown(values["endpoint"]), rule=str(error))
        else:
            if endpoints and url not in endpoints:
                yield Problem(
                    path="endpoint",
                    value=shown(values["endpoint"]),
                    rule=f"must be one of {', '.join(endpoints)} on this node",
                )
