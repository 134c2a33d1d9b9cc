"""C{/node}: what this node is, what it allows, and how its parts are."""

# twisted.web has hardly any types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.application.service import Service

import pcapsvc
from pcapsvc.core.source_state import SourceState
from pcapsvc.core.timestamp import rfc3339
from pcapsvc.host.memory import ProcessMemory
from pcapsvc.net.http_resource import Answer, Resource
from pcapsvc.settings import Settings
from pcapsvc.settings.interface import capture_bytes
from pcapsvc.settings.section import DestinationSection, EncoderSection
from pcapsvc.web.settings import WebSettings


class NodeState(Service):
    """
    Describes a node.

    @param node: the L{pcapsvc.app.Node}.
    @param wall_clock: returns the time in seconds since the Unix epoch.
    """

    def __init__(self, node: Any, *, wall_clock: Callable[[], float]) -> None:
        self._node = node
        self._wall_clock = wall_clock
        self._started: float | None = None
        settings = node.settings
        self._compress = {
            section.name: section.compression().usual for section in settings.enabled(DestinationSection)
        }
        self._always = {
            "name": settings.general.node_name,
            "version": pcapsvc.__version__,
            **_limits(settings),
            "api": settings.section(WebSettings).url,
        }

    def startService(self) -> None:
        """The node starts."""
        super().startService()
        self._started = self._wall_clock()

    def describe(self) -> dict[str, Any]:
        """The node as it is now, in values that JSON has."""
        node = self._node
        left = {} if node.spool is None else node.spool.left
        return {
            **self._always,
            "started": _time(self._started),
            "sources": [
                {"name": name, **_connection(source.state())} for name, source in node.sources.items()
            ],
            "channels": [
                {
                    "name": channel.name,
                    **_connection(channel.state()),
                    "waiting": channel.waiting,
                    "dropped": channel.dropped,
                }
                for channel in node.channels.values()
            ],
            "destinations": [
                {
                    "name": name,
                    "waiting": len(outbox.waiting),
                    "spooled": left.get(name, 0),
                    "compress": self._compress[name],
                }
                for name, outbox in node.outboxes.items()
            ],
            "spool": None
            if node.spool is None
            else {
                "entries": node.spool.entries,
                "bytes": node.spool.size,
                "max_bytes": node.spool.max_bytes,
            },
            "captures": {"running": len(node.captures.running), "held_bytes": node.captures.held_bytes()},
        }


class NodeResource(Resource):
    """C{/node}."""

    allowedMethods = (b"GET", b"HEAD")

    def __init__(self, state: NodeState) -> None:
        super().__init__()
        self._state = state

    def render_GET(self, request: Any) -> Answer:
        """See L{Resource}."""
        return Answer.json(self._state.describe())


def _limits(settings: Settings) -> dict[str, Any]:
    general = settings.general
    return {
        "limits": {
            "packets": general.max_packets,
            "bytes": general.max_bytes,
            "timeout": general.max_timeout_seconds,
            "duration": general.max_duration_seconds,
            "snaplength": general.max_snap_length,
            "captures": general.max_captures,
            # As admission has it.
            "memory": capture_bytes(settings, ProcessMemory()),
            "filter_characters": general.max_filter_characters,
        },
        "defaults": {
            "timeout": general.default_timeout_seconds,
            "snaplength": general.snap_length,
            "format": general.format,
        },
        "formats": [section.name for section in settings.enabled(EncoderSection)],
    }


def _connection(state: SourceState) -> dict[str, Any]:
    return {"connected": state.connected, "since": _time(state.since), "problem": state.problem}


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else rfc3339(seconds)
