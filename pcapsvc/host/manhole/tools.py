"""
The names that a console begins with.

What changes the daemon (starting and ending captures) is done by the reactor in a turn of its
own, not within the line: a line may be interrupted anywhere, and the pipeline must not be.
"""

from __future__ import annotations

import gc
import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, cast

import msgspec
from twisted.internet.defer import Deferred

from pcapsvc.core.message import Message
from pcapsvc.host.manhole.masking import masked

#: What the pipeline, and events, call the manhole as a source of requests.
SOURCE_NAME = "manhole"

_MARKUP = re.compile(r"\b[A-Z]\{([^{}]*)\}")
_RAISES = re.compile(r"^@raises? ([\w.]+):", re.MULTILINE)
_FIELD = re.compile(r"^@\w+(?: (\w+))?:", re.MULTILINE)

_COLUMN_CHARACTERS = 60
_MAX_ROWS = 200


class Table(list[dict[str, Any]]):
    """Rows of the same columns; shown as a table."""

    def __repr__(self) -> str:
        if not self:
            return "(none)"
        columns = list(dict.fromkeys(name for row in self for name in row))
        lines = [columns, *([_cell(row.get(name)) for name in columns] for row in self[:_MAX_ROWS])]
        widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
        text = "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )
        return text if len(self) <= _MAX_ROWS else f"{text}\n… and {len(self) - _MAX_ROWS} more rows"


class Record(dict[str, Any]):
    """One thing; shown as one line for each of its keys."""

    def __repr__(self) -> str:
        width = max(map(len, self), default=0)
        return "\n".join(f"{key.ljust(width)}  {_cell(value, 10_000)}" for key, value in self.items())


class CaptureTool:
    """The captures that are running, and recent ones."""

    def __init__(self, node: Any, reactor: Any) -> None:
        self._node = node
        self._reactor = reactor

    def list(self, state: str | None = None) -> Table:
        """Running and recent captures; state is 'capturing', 'delivering', 'done' or 'failed'."""
        captures = self._node.captures.list(state)
        is_any_rolling = any(each.get("rolling") for each in captures)
        return Table(
            {
                "id": each.get("id"),
                "state": each.get("state"),
                "source": each.get("source"),
                "interface": each.get("interface"),
                "packets": each.get("packets"),
                "bytes": each.get("bytes"),
                **({"rolling since": (each.get("rolling") or {}).get("first")} if is_any_rolling else {}),
                "filter": each.get("bpf"),
            }
            for each in captures
        )

    def get(self, capture_id: str) -> Record | None:
        """All that is known of one capture."""
        found = self._node.captures.get(capture_id)
        return None if found is None else Record(found)

    def start(self, request: Mapping[str, Any] | None = None, **more: Any) -> Deferred[Any]:
        """Submit a request, for this node by default: start(interface=['eth0'], bpf='port 53')."""
        asked = {**(request or {}), **more}
        if not {"node", "nodere"} & asked.keys():
            asked["node"] = self._node.settings.general.node_name
        body = json.dumps(asked).encode()
        return self._in_a_turn(lambda: self._node.pipeline.submit(Message(source=SOURCE_NAME, body=body)))

    def end(self, capture_id: str) -> Deferred[Any]:
        """End a running capture. What it has recorded is delivered."""
        return self._in_a_turn(lambda: self._node.captures.end(capture_id))

    def _in_a_turn(self, action: Callable[[], Any]) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self._reactor.callLater(0, done.callback, None)
        return done.addCallback(lambda _: action())

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.list()[index]

    def __repr__(self) -> str:
        return repr(self.list())


class SpoolTool:
    """What waits in the spool."""

    def __init__(self, node: Any, reactor: Any) -> None:
        self._spool = node.spool
        self._reactor = reactor

    def list(self) -> Table:
        """The captures in the spool, once for each destination that they are for."""
        now = self._reactor.seconds()
        return Table(
            {**_entry(entry), "next in": f"{max(0.0, entry.due - now):.0f} s"}
            for entry in ([] if self._spool is None else self._spool.waiting)
        )

    def __repr__(self) -> str:
        return "There is no spool." if self._spool is None else repr(self.list())


class HistoriesTool:
    """What is kept of the past of interfaces."""

    def __init__(self, node: Any) -> None:
        self._histories = node.histories

    def list(self) -> Table:
        """How far back the history of each interface reaches, and what it has missed."""
        return Table(
            {
                "interface": state.interface,
                "reaches": f"{state.seconds:.1f} s",
                "of": f"{state.bounds.seconds:g} s",
                "packets": state.packets,
                "bytes": state.bytes,
                "of bytes": state.bounds.size_bytes,
                "dropped": state.dropped,
                "problem": state.problem,
            }
            for state in self._histories.states()
        )

    def __repr__(self) -> str:
        return repr(self.list())


class OutboxesTool(dict[str, Any]):
    """The outboxes, by destination: what is being delivered, except for what is left to the spool."""

    def list(self) -> Table:
        """The captures that are being delivered, once for each destination that they are for."""
        return Table(_entry(entry) for each in self.values() for entry in each.waiting)

    def __repr__(self) -> str:
        return repr(Table({"destination": name, "waiting": len(each.waiting)} for name, each in self.items()))


class TableView(SimpleNamespace):
    """A table of the configuration, with those nested in it: C{settings.reports.redis}."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __repr__(self) -> str:
        values = {name: value for name, value in vars(self).items() if name != "_path"}
        nested = {name: value for name, value in values.items() if isinstance(value, TableView)}
        lines = [f"{name} = {value!r}" for name, value in values.items() if name not in nested]
        own = ["\n".join([f"[{self._path}]", *lines])] if lines else []
        return "\n\n".join([*own, *map(repr, nested.values())])


class SettingsView:
    """
    The configuration, by section: C{settings.redis.host}. Secrets are masked.

    @param settings: as L{masked} returns them.
    """

    def __init__(self, settings: Any) -> None:
        for section in settings.sections:
            values = {name: getattr(section, name) for name in section.__struct_fields__}
            if values:
                # Several sections may share a table.
                vars(self._table(section.table or section.name)).update(values)
        self.interfaces = settings.interfaces

    def _table(self, path: str) -> TableView:
        found: Any = self
        parents: list[str] = []
        for name in path.split("."):
            parents.append(name)
            found = vars(found).setdefault(name, TableView(".".join(parents)))
        return cast("TableView", found)

    def __repr__(self) -> str:
        tables = [repr(each) for each in vars(self).values() if isinstance(each, TableView)]
        for interface in self.interfaces:
            lines = [f"{name} = {getattr(interface, name)!r}" for name in interface.__struct_fields__]
            tables.append("\n".join(["[[interface]]", *lines]))
        return "\n\n".join(tables)


class Parts(dict[str, Any]):
    """Parts of the daemon by name; shown one in a line."""

    def __repr__(self) -> str:
        return repr(Table({"name": name, "is": type(part).__qualname__} for name, part in self.items()))


def namespace(node: Any, reactor: Any) -> dict[str, Any]:
    """
    The names of a new console.

    @param node: the L{pcapsvc.app.Node}.
    """
    names = {
        # Whoever reaches its settings by the node finds them masked, too.
        "node": msgspec.structs.replace(node, settings=masked(node.settings)),
        "settings": SettingsView(masked(node.settings)),
        "captures": CaptureTool(node, reactor),
        "sources": Parts(node.sources),
        "destinations": Parts(node.destinations),
        "channels": Parts(node.channels),
        "outboxes": OutboxesTool(node.outboxes),
        "spool": SpoolTool(node, reactor),
        "histories": HistoriesTool(node),
        "reactor": reactor,
        "delayed_calls": lambda: delayed_calls(reactor),
        "readers": lambda: readers(reactor),
        "objects": objects,
    }
    return {**names, "help": Help(names)}


def _entry(entry: Any) -> dict[str, Any]:
    return {
        "capture": entry.capture_id,
        "destination": entry.destination,
        "state": entry.state.name.lower(),
        "bytes": None if entry.spooled is None else entry.spooled.size,
        "attempts": entry.attempts,
        "problem": entry.problem,
    }


def delayed_calls(reactor: Any) -> Table:
    """The calls that the reactor will make, the next one first."""
    now = reactor.seconds()
    calls = sorted(reactor.getDelayedCalls(), key=lambda call: call.getTime())
    return Table({"in": f"{call.getTime() - now:.3f} s", "calls": _callable(call.func)} for call in calls)


def readers(reactor: Any) -> Table:
    """The descriptors that the reactor waits for, to read from or to write to."""
    return Table(
        {"fd": each.fileno(), "waits to": what, "is": _shown(each)}
        for what, found in (("read", reactor.getReaders()), ("write", reactor.getWriters()))
        for each in found
    )


def objects(count: int = 20, name: str = "") -> Table:
    """The most frequent types of live objects; those whose name has the given text."""
    counts = Counter(map(type, gc.get_objects()))
    rows = ((f"{kind.__module__}.{kind.__qualname__}", number) for kind, number in counts.most_common())
    return Table(
        {"type": kind, "objects": number}
        for kind, number in _first(count, ((kind, number) for kind, number in rows if name in kind))
    )


class Help:
    """Describes the names of a console, or one object."""

    def __init__(self, names: Mapping[str, Any]) -> None:
        self._names = names

    def __call__(self, *about: Any) -> None:
        """Print it."""
        for each in about:
            print("\n".join(_description(each)))  # noqa: T201 - to the session, which is where stdout leads
        if not about:
            print(self)  # noqa: T201 - as above

    def __repr__(self) -> str:
        return _HELP


def _description(thing: Any) -> Iterator[str]:
    yield _plain(inspect.getdoc(thing) or f"{type(thing).__name__}, which is not documented")
    if isinstance(thing, type) or not hasattr(type(thing), "__dict__"):
        return
    for name in dir(type(thing)):
        method = getattr(type(thing), name, None)
        if not name.startswith("_") and inspect.isfunction(method):
            summary = _plain(inspect.getdoc(method) or "").partition("\n")[0]
            yield f"  .{name}{_signature(method)}\n      {summary}"


def _signature(method: Any) -> str:
    parameters = list(inspect.signature(method).parameters.values())[1:]
    return "(" + ", ".join(str(each.replace(annotation=each.empty)) for each in parameters) + ")"


def _plain(documentation: str) -> str:
    """Documentation without its markup (Epytext)."""
    text = _FIELD.sub(lambda field: f"{field[1] or 'Returns'}:", _RAISES.sub(r"Raises \1:", documentation))
    while (simpler := _MARKUP.sub(r"\1", text)) != text:
        text = simpler
    return text


def _first(count: int, rows: Iterator[Any]) -> Iterator[Any]:
    for _, row in zip(range(count), rows, strict=False):
        yield row


def _cell(value: Any, most: int = _COLUMN_CHARACTERS) -> str:
    text = "" if value is None else value if isinstance(value, str) else repr(value)
    return text if len(text) <= most else text[: most - 1] + "…"


def _shown(thing: Any) -> str:
    return repr(thing) if any("__repr__" in vars(kind) for kind in type(thing).__mro__[:-1]) else _part(thing)


def _part(part: Any) -> str:
    name = getattr(part, "name", None)
    kind = type(part).__qualname__
    return f"{name} ({kind})" if isinstance(name, str) and name else kind


def _callable(function: Any) -> str:
    owner = getattr(function, "__self__", None)
    name = getattr(function, "__qualname__", None) or repr(function)
    return f"{name} of {_part(owner)}" if owner is not None else str(name)


_HELP = """\
node            the daemon's parts: node.pipeline, node.settings, …
settings        the configuration: settings.general.snap_length, …; secrets are masked
captures        .list(), .get(id), .start(interface=['eth0'], …), .end(id)
sources         where requests come from
destinations    where captures are delivered to
channels        where events are published
outboxes        .list(): what is being delivered
spool           .list(): what waits on the disk, to be delivered later
histories       .list(): how far back the history of each interface reaches
delayed_calls() what the reactor will call, and when
readers()       the descriptors that the reactor waits for
objects()       live objects by type; objects(50, "pcapsvc") for more, or for some
reactor         the reactor itself
help(thing)     what is known of a thing

A Deferred is shown again when it fires; _ is the last value. Ctrl-D leaves.
A line runs in the daemon's own thread, and captures wait for it: after 0.05 s it is interrupted.
What you change is changed. Every line is logged."""
