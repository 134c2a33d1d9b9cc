"""The messages that pcapctl sends, checked by the rules of the nodes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from pcapsvc.client.status import UsageProblem
from pcapsvc.core.errors import RequestRejected
from pcapsvc.core.node import NodeMatcher
from pcapsvc.core.put_url import PutUrlOptions, put_url_problems, several_captures_problem
from pcapsvc.core.request import MAX_BODY_BYTES, CaptureRequest, OptionFields, RequestBounds, parse_request
from pcapsvc.core.values import Flag, Folder, Name, Region, one_line

# What no node can exceed: its own limits are checked by itself.
_UNLIMITED = 2**63 - 1
#: The longest snap length of libpcap (MAXIMUM_SNAPLEN in pcap-int.h).
_MAX_SNAP_LENGTH = 262144


class _S3Fields(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a request about S3. Whether a node allows them is its own matter."""

    bucket: Name | None = None
    folder: Folder | None = None
    acl: Name | None = None
    region: Region | None = None
    endpoint: Name | None = None
    encryption: Flag | None = None
    storageclass: Name | None = None
    kmskeyid: Annotated[str, one_line(2048)] | None = None


def check_message(body: bytes, name: str = "the request") -> CaptureRequest | Any:
    """
    Check a message as a node does, as far as that does not depend on the node.

    @param name: what a problem calls it.

    @raise UsageProblem: with every problem.
    """
    bounds = RequestBounds(
        max_packets=_UNLIMITED,
        max_bytes=_UNLIMITED,
        max_timeout_seconds=_UNLIMITED,
        max_duration_seconds=_UNLIMITED,
        max_snap_length=_MAX_SNAP_LENGTH,
        max_filter_characters=MAX_BODY_BYTES,
        aliases=_aliases(body),
        options=(
            OptionFields(destination="s3", structure=_S3Fields),
            OptionFields(destination="puturl", structure=PutUrlOptions, check=put_url_problems),
        ),
    )
    try:
        request = parse_request(body, bounds)
        if isinstance(request, CaptureRequest):
            _check_several(request)
        if request.nodere is not None:
            NodeMatcher("").matches(None, request.nodere)
    except RequestRejected as rejected:
        raise UsageProblem("\n".join([f"{name} is not valid:", *_lines(rejected)])) from None
    return request


def encode(fields: Mapping[str, Any], name: str = "the request") -> bytes:
    """
    A message with these fields, checked. What is L{None} is left out.

    @param name: what a problem calls it.

    @raise UsageProblem: if a node would reject it.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    # TOML has dates and times, which are texts in JSON.
    body = json.dumps(given, default=str).encode()
    check_message(body, name)
    return body


def stop_message(requestid: str, address: Mapping[str, str]) -> bytes:
    """A message that ends the captures of a request on the nodes that C{address} selects."""
    return encode({**address, "stop": requestid})


def _check_several(request: CaptureRequest) -> None:
    """What an alias means is known to each node."""
    interfaces = len({*(request.interface or ())})
    if problems := [*several_captures_problem(request.options.get("puturl", {}), interfaces)]:
        raise RequestRejected(problems)


def _lines(rejected: RequestRejected) -> Sequence[str]:
    return [f"  {problem}" for problem in rejected.problems]


def _aliases(body: bytes) -> frozenset[str]:
    """The aliases that a message has: which of them a node knows is its own matter."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return frozenset()
    if not isinstance(document, dict):
        return frozenset()
    given = [value for key, value in document.items() if key.lower() == "alias"]
    return frozenset(
        name for value in given if isinstance(value, list) for name in value if isinstance(name, str)
    )
