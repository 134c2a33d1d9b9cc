"""The commands about nodes and their captures, by the HTTP API of the nodes."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pcapsvc.client.address import Address
from pcapsvc.client.api import ApiProblem, NodeApi, capture_path
from pcapsvc.client.at_once import at_once
from pcapsvc.client.complaint import complain
from pcapsvc.client.connections import Connections
from pcapsvc.client.message import stop_message
from pcapsvc.client.requesting import node_address
from pcapsvc.client.status import ClientError, ExitStatus, NoAnswer, NotMeant, Refused, UsageProblem
from pcapsvc.client.words import clean, duration, json_text, size

# What a node answers: objects for JSON, and rows for a table.
_Answer = tuple[Sequence[Any], Sequence[Sequence[str]]]


def list_captures(options: Namespace) -> ExitStatus:
    """C{pcapctl list}."""
    query = {
        "state": options.state,
        "requestid": options.request,
        "limit": None if options.limit is None else str(options.limit),
    }

    def ask(api: NodeApi) -> _Answer:
        captures = api.call("GET", "/captures", **query)["captures"]
        return captures, [_capture_row(capture) for capture in captures]

    titles = ("id", "state", "node", "interface", "started", "packets", "size", "filter")
    return _print_answers(options, titles, ask)


def _capture_row(capture: Mapping[str, Any]) -> Sequence[str]:
    return (
        capture["id"],
        capture["state"],
        capture["node"],
        capture["interface"],
        _moment(capture["started"]),
        str(capture.get("packets", "")),
        size(capture.get("bytes") or 0),
        capture["bpf"] or "",
    )


def _moment(time: str | None) -> str:
    """A time of the API, which is in UTC, without fractions of a second."""
    return f"{time[:19]}Z" if time else ""


def show(options: Namespace) -> ExitStatus:
    """C{pcapctl show ID}: its state, as the node reports it."""
    api = _api_of(Connections(options, os.environ), options.id)
    print(json_text(api.call("GET", capture_path(options.id)), indent=2))
    return ExitStatus.DELIVERED


def stop(options: Namespace) -> ExitStatus:
    """C{pcapctl stop}: one capture by its id, or all captures of a request."""
    connections = Connections(options, os.environ)
    if (options.id is None) == (options.request is None):
        raise UsageProblem("give the id of a capture, or --request and the requestid of a request")
    if options.id is not None:
        if node_address(options):
            raise UsageProblem("--node, --nodere and --all go with --request, not with the id of a capture")
        try:
            _api_of(connections, options.id).call("DELETE", capture_path(options.id))
        except ApiProblem as problem:
            raise Refused(str(problem)) from None
        return ExitStatus.DELIVERED
    if options.api:
        # Those who name some nodes by it don't mean all of them.
        raise UsageProblem("--api has no effect with --request, which is sent through --via")
    body = stop_message(options.request, node_address(options) or {"node": "any"})
    via = connections.needed_via()

    def send(address: Address) -> ClientError | None:
        try:
            if connections.transport(address).send(body) != 0:
                return None
        except (NoAnswer, Refused) as problem:
            return problem
        return NoAnswer(f"{address}: no node is subscribed to the channel")

    problems = [each for each in at_once(send, via) if each is not None]
    is_any_well = len(problems) < len(via)
    if is_any_well:
        problems = [each for each in problems if not isinstance(each, NotMeant)]
    for each in problems:
        complain(str(each))
    return _status(problems, is_any_well=is_any_well)


def nodes(options: Namespace) -> ExitStatus:
    """C{pcapctl nodes}."""

    def ask(api: NodeApi) -> _Answer:
        node = api.call("GET", "/node")
        return [node], [_node_row(api, node)]

    titles = ("node", "api", "version", "running", "sources", "destinations", "spool")
    return _print_answers(options, titles, ask)


def _node_row(api: NodeApi, node: Mapping[str, Any]) -> Sequence[str]:
    sources = [f"{each['name']}{'' if each['connected'] else ' (down)'}" for each in node["sources"]]
    spool = node["spool"]
    return (
        node["name"],
        str(api.address),
        node["version"],
        str(node["captures"]["running"]),
        ", ".join(sources),
        ", ".join(each["name"] for each in node["destinations"]),
        "" if spool is None else f"{spool['entries']} ({size(spool['bytes'])})",
    )


def interfaces(options: Namespace) -> ExitStatus:
    """C{pcapctl interfaces}."""

    def ask(api: NodeApi) -> _Answer:
        name, listed = api.call("GET", "/node")["name"], api.call("GET", "/interfaces")["interfaces"]
        return [{"node": name, **each} for each in listed], [_interface_row(name, each) for each in listed]

    titles = ("node", "interface", "aliases", "state", "link", "history", "addresses")
    return _print_answers(options, titles, ask)


def _interface_row(node: str, interface: Mapping[str, Any]) -> Sequence[str]:
    history = interface["history"]
    return (
        node,
        interface["name"],
        ", ".join(interface["aliases"]),
        "gone" if interface["index"] is None else "up" if interface["up"] else "down",
        str(interface["link_type"] or ""),
        "" if history is None else duration(history["seconds"]),
        " ".join(interface["addresses"]),
    )


def _print_answers(
    options: Namespace, titles: Sequence[str], ask: Callable[[NodeApi], _Answer]
) -> ExitStatus:
    """Print what each node answers, those that can be asked, as a table or in JSON."""
    items: list[Any] = []
    rows: list[Sequence[str]] = []
    problems: list[ClientError] = []

    def answer(api: NodeApi) -> _Answer | ClientError:
        try:
            return ask(api)
        except ClientError as problem:
            return problem
        except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError):
            return NoAnswer(f"{api.address} does not answer as a node does")

    apis = Connections(options, os.environ).needed_apis()
    for answered in at_once(answer, apis):
        if isinstance(answered, ClientError):
            problems.append(answered)
            complain(str(answered))
        else:
            items += answered[0]
            rows += answered[1]
    is_any_well = len(problems) < len(apis)
    if options.json:
        for item in items:
            print(json_text(item))
    elif is_any_well:
        _print_table(titles, rows)
    return _status(problems, is_any_well=is_any_well)


def _status(problems: Sequence[ClientError], *, is_any_well: bool) -> ExitStatus:
    if not problems:
        return ExitStatus.DELIVERED
    if is_any_well:
        return ExitStatus.PARTLY
    is_refused = all(isinstance(problem, (ApiProblem, Refused)) for problem in problems)
    return ExitStatus.REJECTED if is_refused else ExitStatus.NO_ANSWER


def _api_of(connections: Connections, capture_id: str) -> NodeApi:
    """The API of the node that knows a capture."""

    def ask(api: NodeApi) -> ClientError | None:
        try:
            api.call("GET", capture_path(capture_id))
        except ClientError as problem:
            return problem
        return None

    apis = connections.needed_apis()
    problems = []
    for api, problem in zip(apis, at_once(ask, apis), strict=True):
        if problem is None:
            return api
        if not isinstance(problem, ApiProblem) or problem.code != 404:
            problems.append(problem)
    for each in problems:
        complain(str(each))
    if problems and all(isinstance(problem, NoAnswer) for problem in problems):
        raise NoAnswer(f"no node that answers knows a capture {clean(capture_id)}")
    raise Refused(f"no node knows a capture {clean(capture_id)}")


def _print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need be, so that the output can be cut and sorted by other programs."""
    lines = [titles, *([clean(cell) or "-" for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
