"""C{pcapctl watch}: events as they happen, of all requests."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from pcapsvc.client.connections import Connections
from pcapsvc.client.reader import EventReader
from pcapsvc.client.status import ExitStatus
from pcapsvc.client.views import JsonView, LineView

# As long as a Ctrl-C may take.
_TURN_SECONDS = 0.2


def watch(options: Namespace) -> ExitStatus:
    """Run the command, until it is interrupted."""
    connections = Connections(options, os.environ)
    reader = EventReader(connections, connections.watched(), options.request)
    view = JsonView(sys.stdout) if options.json else LineView(sys.stdout)
    try:
        # Ctrl-C ends it.
        while True:
            for item in reader.take(_TURN_SECONDS):
                if isinstance(item, str):
                    view.note(item)
                elif is_wanted(item, options):
                    view.event(item)
    finally:
        reader.close()


def is_wanted(event: Mapping[str, Any], options: Namespace) -> bool:
    """Whether an event passes the filters: C{request}, C{node}, C{interface} and C{type}."""
    data, kind = event["data"], str(event.get("type", ""))
    node = unquote(str(event.get("source", "")).rpartition("/")[2])
    if options.request is not None and data.get("requestid") != options.request:
        return False
    if options.node and node not in options.node:
        return False
    if options.interface and data.get("interface") not in options.interface:
        return False
    if options.type:
        short = kind.removeprefix("pcapsvc.")
        wanted = [each.removeprefix("pcapsvc.") for each in options.type]
        return any(short == each or short.startswith(f"{each}.") for each in wanted)
    return options.progress or not kind.endswith(".progress")
