"""
C{pcapctl extcap}: an interface of Wireshark for each interface of each node.

The protocol is that of extcap(4): Wireshark runs the program to list interfaces, link types and options, and
then to capture into a FIFO, until it ends the program.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import uuid
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, unquote

from pcapsvc import __version__
from pcapsvc.client.api import ApiProblem, NodeApi, capture_path
from pcapsvc.client.at_once import at_once
from pcapsvc.client.complaint import complain
from pcapsvc.client.connections import Connections
from pcapsvc.client.interruption import on_signal, uninterrupted
from pcapsvc.client.message import encode
from pcapsvc.client.profile import configuration_file, load_profiles
from pcapsvc.client.status import ClientError, ExitStatus, NoAnswer, UsageProblem
from pcapsvc.client.streaming import copy_packets
from pcapsvc.client.words import clean

_PREFIX = "pcapctl"
# Wireshark starts only once all interfaces are listed.
_LIST_SECONDS = 3.0

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
            apis = _connections(profile).needed_apis(answer_seconds=_LIST_SECONDS)
            found += [(profile, api) for api in apis]
        except ClientError as problem:
            complain(f"{profile}: {problem}")
    if not found:
        return ExitStatus.DELIVERED
    for answered in at_once(_interface_lines, found):
        if isinstance(answered, ClientError):
            complain(str(answered))
        else:
            print("".join(f"{line}\n" for line in answered), end="")
    return ExitStatus.DELIVERED


def _interface_lines(place: tuple[str, NodeApi]) -> Sequence[str] | ClientError:
    profile, api = place
    try:
        with _read_as_a_node(api):
            node = str(api.call("GET", "/node")["name"])
            return _lines(profile, node, api.call("GET", "/interfaces")["interfaces"])
    except ClientError as problem:
        return problem


def _lines(profile: str, node: str, interfaces: Iterable[Mapping[str, Any]]) -> Sequence[str]:
    lines = []
    for each in interfaces:
        if not each["up"]:
            continue
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
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UsageProblem(f"{options.fifo} is a regular file, and is not replaced")
            with _read_as_a_node(api):
                body = encode(_fields(options, api.call("GET", "/node"), node, interface))
                # A capture whose id isn't known could not be ended.
                with uninterrupted():
                    capture_id = str(api.call("POST", "/captures", body)["captures"][0]["id"])
            copy_packets(api, capture_id, descriptor)
        finally:
            # Without a call, which might be interrupted.
            signals.is_armed = False
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
    with _read_as_a_node(api):
        for problem in answer.get("problems", ()):
            print(clean(problem["rule"]))
    return ExitStatus.DELIVERED


@contextmanager
def _read_as_a_node(api: NodeApi) -> Iterator[None]:
    """
    Read what a node answers.

    @raise NoAnswer: if it has another shape.
    """
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError):
        raise NoAnswer(f"{api.address} does not answer as a node does") from None


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
    connections = _connections(profile)
    apis = connections.needed_apis(answer_seconds=_LIST_SECONDS)

    def name(api: NodeApi) -> Any:
        try:
            return api.call("GET", "/node").get("name")
        except (ClientError, AttributeError):
            return None

    for api, found in zip(apis, at_once(name, apis), strict=True):
        if found == node:
            return connections.api(api.address)
    raise ClientError(f"no node that answers is named {clean(node)}")


def _without_braces(text: str) -> str:
    """A text that doesn't end the value that it is."""
    return clean(text).replace("{", "(").replace("}", ")")


class _Ended(Exception):
    """Wireshark ends the capture."""


class _Signals:
    """
    Raises L{_Ended} when Wireshark ends the program: once, so that the capture can be ended as well.

    @ivar is_armed: whether it still does.
    """

    def __init__(self) -> None:
        self.is_armed = True
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # nohup has it ignored.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                on_signal(number, self._reason)

    def _reason(self) -> _Ended | None:
        if not self.is_armed:
            return None
        self.is_armed = False
        return _Ended()
