"""The commands about nodes and their captures, by the HTTP API of the nodes."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pcapsvc.client.api import ApiProblem, NodeApi, capture_path
from pcapsvc.client.at_once import at_once
from pcapsvc.client.connections import Connections
from pcapsvc.client.message import stop_message
from pcapsvc.client.requesting import node_address
from pcapsvc.client.status import ClientError, ExitStatus, NoAnswer, Refused, UsageProblem
from pcapsvc.client.words import clean, duration, size


def list_captures(options: Namespace) -> ExitStatus:
    """C{pcapctl list}."""
    query = {
        "state": options.state,
        "requestid": options.request,
        "limit": None if options.limit is None else str(options.limit),
    }
    found, status = _each(options, lambda api: api.call("GET", "/captures", **query)["captures"])
    captures = [capture for _, captures in found for capture in captures]
    if options.json:
        _print_json(captures)
        return status
    rows = [
        (
            capture["id"],
            capture["state"],
            capture["node"],
            capture["interface"],
            (capture["started"] or "")[:19],
            str(capture.get("packets", "")),
            size(capture.get("bytes") or 0),
            capture["bpf"] or "",
        )
        for capture in captures
    ]
    _print_table(("id", "state", "node", "interface", "started", "packets", "size", "filter"), rows)
    return status


def show(options: Namespace) -> ExitStatus:
    """C{pcapctl show ID}: its state, as the node reports it."""
    api = _api_of(Connections(options, os.environ), options.id)
    print(json.dumps(api.call("GET", capture_path(options.id)), indent=2))
    return ExitStatus.DELIVERED


def stop(options: Namespace) -> ExitStatus:
    """C{pcapctl stop}: one capture by its id, or all captures of a request."""
    connections = Connections(options, os.environ)
    if (options.id is None) == (options.request is None):
        raise UsageProblem("give the id of a capture, or --request and the requestid of a request")
    if options.id is not None:
        try:
            _api_of(connections, options.id).call("DELETE", capture_path(options.id))
        except ApiProblem as problem:
            raise Refused(str(problem)) from None
        return ExitStatus.DELIVERED
    body = stop_message(options.request, node_address(options) or {"node": "any"})
    problems: list[ClientError] = []
    via = connections.needed_via()
    for address in via:
        try:
            connections.transport(address).send(body)
        except (NoAnswer, Refused) as problem:
            problems.append(problem)
            _complain(problem)
    return _status(problems, is_any_well=len(problems) < len(via))


def nodes(options: Namespace) -> ExitStatus:
    """C{pcapctl nodes}."""
    found, status = _each(options, lambda api: api.call("GET", "/node"))
    if options.json:
        _print_json(node for _, node in found)
        return status
    rows = []
    for api, node in found:
        down = [each["name"] for each in node["sources"] if not each["connected"]]
        spool = node["spool"]
        rows.append(
            (
                node["name"],
                str(api.address),
                node["version"],
                str(node["captures"]["running"]),
                ", ".join(
                    f"{each['name']}{' (down)' if each['name'] in down else ''}" for each in node["sources"]
                ),
                ", ".join(each["name"] for each in node["destinations"]),
                "" if spool is None else f"{spool['entries']} ({size(spool['bytes'])})",
            )
        )
    _print_table(("node", "api", "version", "running", "sources", "destinations", "spool"), rows)
    return status


def interfaces(options: Namespace) -> ExitStatus:
    """C{pcapctl interfaces}."""
    found, status = _each(
        options, lambda api: (api.call("GET", "/node")["name"], api.call("GET", "/interfaces")["interfaces"])
    )
    if options.json:
        _print_json({"node": name, **each} for _, (name, listed) in found for each in listed)
        return status
    rows = []
    for _, (name, listed) in found:
        for each in listed:
            history = each["history"]
            rows.append(
                (
                    name,
                    each["name"],
                    ", ".join(each["aliases"]),
                    "gone" if each["index"] is None else "up" if each["up"] else "down",
                    str(each["link_type"] or ""),
                    "" if history is None else duration(history["seconds"]),
                    " ".join(each["addresses"]),
                )
            )
    _print_table(("node", "interface", "aliases", "state", "link", "history", "addresses"), rows)
    return status


def _each(options: Namespace, ask: Callable[[NodeApi], Any]) -> tuple[list[tuple[NodeApi, Any]], ExitStatus]:
    """What each node answers, those that can be asked; and the exit status."""
    apis = Connections(options, os.environ).needed_apis()
    found: list[tuple[NodeApi, Any]] = []
    problems: list[ClientError] = []

    def answer(api: NodeApi) -> Any:
        try:
            return ask(api)
        except ClientError as problem:
            return problem
        except (KeyError, TypeError):
            return NoAnswer(f"{api.address} does not answer as a node does")

    for api, answered in zip(apis, at_once(answer, apis), strict=True):
        if isinstance(answered, ClientError):
            problems.append(answered)
            _complain(answered)
        else:
            found.append((api, answered))
    return found, _status(problems, is_any_well=bool(found))


def _status(problems: Sequence[ClientError], *, is_any_well: bool) -> ExitStatus:
    if not problems:
        return ExitStatus.DELIVERED
    if is_any_well:
        return ExitStatus.PARTLY
    is_refused = all(isinstance(problem, (ApiProblem, Refused)) for problem in problems)
    return ExitStatus.REJECTED if is_refused else ExitStatus.NO_ANSWER


def _api_of(connections: Connections, capture_id: str) -> NodeApi:
    """The API of the node that knows a capture."""
    problems: list[ClientError] = []
    for api in connections.needed_apis():
        try:
            api.call("GET", capture_path(capture_id))
            return api
        except ApiProblem as problem:
            if problem.code != 404:
                problems.append(problem)
        except NoAnswer as problem:
            problems.append(problem)
    for each in problems:
        _complain(each)
    if problems and all(isinstance(problem, NoAnswer) for problem in problems):
        raise NoAnswer(f"no node that answers knows a capture {clean(capture_id)}")
    raise Refused(f"no node knows a capture {clean(capture_id)}")


def _complain(problem: ClientError) -> None:
    print(f"pcapctl: {problem}", file=sys.stderr)


def _print_json(items: Iterable[Any]) -> None:
    for item in items:
        print(json.dumps(item, separators=(",", ":")))


def _print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need be, so that the output can be cut and sorted by other programs."""
    lines = [titles, *([clean(cell) or "-" for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
