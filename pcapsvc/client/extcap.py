"""
C{pcapctl extcap}: an interface of Wireshark for each interface of each node.

The protocol is that of extcap(4): Wireshark runs the program to list interfaces, link types and options, and
then to capture into a FIFO, until it ends the program.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import uuid
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

from pcapsvc import __version__
from pcapsvc.client.api import ApiProblem, NodeApi, capture_path
from pcapsvc.client.at_once import at_once
from pcapsvc.client.connections import Connections
from pcapsvc.client.message import encode
from pcapsvc.client.profile import configuration_file, load_profiles
from pcapsvc.client.status import ClientError, ExitStatus, UsageProblem
from pcapsvc.client.streaming import copy_packets
from pcapsvc.client.words import clean

_PREFIX = "pcapctl"

# The form: the option, its type, its title, and what it means.
_FORM = (
    ("filter", "string", "Filter", "A BPF filter, see pcap-filter(7)"),
    (
        "before",
        "unsigned",
        "Seconds before the start",
        "Begin with the packets of the last seconds, if it has a history",
    ),
    ("packets", "unsigned", "Packets", "End after this many packets"),
    ("bytes", "unsigned", "Bytes", "End at this size of the file"),
    ("duration", "unsigned", "Seconds", "End after this many seconds"),
    ("snap", "unsigned", "Snap length", "Keep this many bytes of each packet"),
)
# The file itself says what is in it; Wireshark wants to know before there is one.
_LINK_TYPES = {"any": (113, "LINUX_SLL", "Linux cooked-mode capture")}
_ETHERNET = (1, "EN10MB", "Ethernet")


def extcap(options: Namespace) -> ExitStatus:
    """Run the command, as Wireshark does."""
    if options.extcap_interfaces:
        return _list_interfaces()
    if options.extcap_interface is None:
        raise UsageProblem("--extcap-interfaces, or --extcap-interface and what to do with it, are missing")
    profile, node, interface = _parts(options.extcap_interface)
    if options.extcap_dlts:
        number, name, words = _LINK_TYPES.get(interface, _ETHERNET)
        print(f"dlt {{number={number}}}{{name={name}}}{{display={words}}}")
    elif options.extcap_config:
        for number, (name, kind, title, words) in enumerate(_FORM):
            about = f"{{display={title}}}{{type={kind}}}{{tooltip={words}}}"
            print(f"arg {{number={number}}}{{call=--{name}}}{about}")
    elif options.capture:
        if options.fifo is None:
            raise UsageProblem("--fifo is missing")
        return _capture(options, _api_of(profile, node), node, interface)
    elif options.extcap_capture_filter is not None:
        # Whatever is printed is taken as an error.
        return _check_filter(_api_of(profile, node), interface, options.extcap_capture_filter)
    return ExitStatus.DELIVERED


def _list_interfaces() -> ExitStatus:
    print(f"extcap {{version={__version__}}}{{display=pcapctl}}")
    found: list[tuple[str, NodeApi]] = []
    for profile in load_profiles(configuration_file(os.environ))[0]:
        try:
            found += [(profile, api) for api in _connections(profile).needed_apis()]
        except ClientError as problem:
            print(f"pcapctl: {profile}: {problem}", file=sys.stderr)
    if not found:
        return ExitStatus.DELIVERED
    for lines in at_once(_interface_lines, found):
        for line in lines:
            print(line)
    return ExitStatus.DELIVERED


def _interface_lines(place: tuple[str, NodeApi]) -> Sequence[str]:
    profile, api = place
    try:
        node = str(api.call("GET", "/node")["name"])
        interfaces = [each for each in api.call("GET", "/interfaces")["interfaces"] if each["up"]]
    except (ClientError, KeyError, TypeError) as problem:
        print(f"pcapctl: {problem}", file=sys.stderr)
        return []
    lines = []
    for each in interfaces:
        value = ":".join([_PREFIX, *(quote(part, safe="") for part in (profile, node, each["name"]))])
        display = _without_braces(f"{each['name']} on {node} ({profile})")
        lines.append(f"interface {{value={value}}}{{display={display}}}")
    return lines


def _capture(options: Namespace, api: NodeApi, node: str, interface: str) -> ExitStatus:
    """Capture into the FIFO until Wireshark ends it, or a limit is reached."""
    signals = _Signals()
    capture_id = None
    try:
        try:
            # Wireshark has it open for reading, or will have.
            descriptor = os.open(options.fifo, os.O_WRONLY)
            body = encode(_fields(options, api.call("GET", "/node"), node, interface))
            capture_id = api.call("POST", "/captures", body)["captures"][0]["id"]
            copy_packets(api, capture_id, descriptor)
        finally:
            signals.ignore()
            if capture_id is not None:
                _end(api, capture_id)
    except (_Ended, BrokenPipeError):
        pass
    except OSError as problem:
        raise UsageProblem(f"{options.fifo}: {problem.strerror}") from None
    return ExitStatus.DELIVERED


def _fields(options: Namespace, about: Mapping[str, Any], node: str, interface: str) -> dict[str, Any]:
    """The fields of the request."""
    filters = [each for each in (options.extcap_capture_filter, options.filter) if each]
    fields = {name: getattr(options, name) or None for name, *_ in _FORM if name != "filter"}
    if fields["before"] is not None:
        fields["beforeoptional"] = True
    return {
        **fields,
        "node": node,
        "interface": [interface],
        "bpf": f"({filters[0]}) and ({filters[1]})" if len(filters) == 2 else "".join(filters) or None,
        "requestid": uuid.uuid4().hex,
        "tags": "wireshark",
        # Whoever looks at an interface may have to wait for a packet.
        "timeout": about.get("limits", {}).get("timeout"),
    }


def _check_filter(api: NodeApi, interface: str, bpf: str) -> ExitStatus:
    answer = api.call("POST", "/filters", json.dumps({"bpf": bpf, "interface": interface}).encode())
    for problem in answer.get("problems", ()):
        print(clean(problem["rule"]))
    return ExitStatus.DELIVERED


def _end(api: NodeApi, capture_id: str) -> None:
    try:
        api.call("DELETE", capture_path(capture_id))
    except ApiProblem:
        pass  # it has ended


def _parts(value: str) -> tuple[str, str, str]:
    prefix, *parts = value.split(":")
    if prefix != _PREFIX or len(parts) != 3:
        raise UsageProblem(f"{clean(value)} is not an interface that --extcap-interfaces lists")
    profile, node, interface = map(unquote, parts)
    return profile, node, interface


def _connections(profile: str) -> Connections:
    return Connections(Namespace(profile=profile), os.environ)


def _api_of(profile: str, node: str) -> NodeApi:
    """The API of a node of a profile."""
    apis = _connections(profile).needed_apis()

    def name(api: NodeApi) -> Any:
        try:
            return api.call("GET", "/node").get("name")
        except (ClientError, AttributeError):
            return None

    for api, found in zip(apis, at_once(name, apis), strict=True):
        if found == node:
            return api
    raise ClientError(f"no node that answers is named {clean(node)}")


def _without_braces(text: str) -> str:
    """A text that doesn't end the value that it is."""
    return clean(text).replace("{", "(").replace("}", ")")


class _Ended(Exception):
    """Wireshark ends the capture."""


class _Signals:
    """Raises L{_Ended} when Wireshark ends the program: once, so that the capture can be ended as well."""

    def __init__(self) -> None:
        self._is_armed = True
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)

    def ignore(self) -> None:
        """From now on, go on."""
        self._is_armed = False

    def _end(self, number: int, frame: object) -> None:
        if self._is_armed:
            self._is_armed = False
            raise _Ended
