"""
C{pcapctl extcap}: an interface of Wireshark for each interface of each node.

Here is what asks the nodes. L{pcapsvc.client.extcap_form} has the rest, and runs the command.
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
from urllib.parse import quote

from pcapsvc import __version__
from pcapsvc.client.api import ApiProblem, NodeApi, capture_path
from pcapsvc.client.at_once import at_once
from pcapsvc.client.complaint import complain
from pcapsvc.client.connections import Connections
from pcapsvc.client.extcap_form import FORM, PREFIX
from pcapsvc.client.interruption import on_signal, uninterrupted
from pcapsvc.client.message import encode
from pcapsvc.client.profile import configuration_file, load_profiles
from pcapsvc.client.status import ClientError, ExitStatus, NoAnswer, UsageProblem
from pcapsvc.client.streaming import copy_packets
from pcapsvc.client.words import clean

# Wireshark starts only once all interfaces are listed.
_LIST_SECONDS = 3.0


def list_interfaces() -> ExitStatus:
    """List the interfaces of the nodes of all profiles."""
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
        value = ":".join([PREFIX, *(quote(part, safe="") for part in (profile, node, each["name"]))])
        display = _without_braces(f"{each['name']} on {node} ({profile})")
        lines.append(f"interface {{value={value}}}{{display={display}}}")
    return lines


def capture(options: Namespace, profile: str, node: str, interface: str) -> ExitStatus:
    """Capture into the FIFO until Wireshark ends it, or a limit is reached."""
    api = _api_of(profile, node)
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
    fields = {name: getattr(options, name) or None for name, *_ in FORM if name != "filter"}
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


def check_filter(profile: str, node: str, interface: str, bpf: str) -> ExitStatus:
    """Print what is wrong with a filter."""
    api = _api_of(profile, node)
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
