"""Those who watch a daemon over HTTP: readers of its events, and a Prometheus that scrapes its metrics."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from peers.process import OwnProcess

_PATIENCE_SECONDS = 180.0


@dataclass(frozen=True, kw_only=True)
class Watched:
    """
    What an audience has got.

    @ivar seconds: how long it was there.
    @ivar events: how many events each reader got.
    @ivar scrapes: how many times the metrics were answered.
    @ivar slowest: how many seconds the slowest answer took.
    @ivar problems: why anybody was disconnected or refused.
    """

    seconds: float
    events: list[int]
    scrapes: int
    slowest: float
    problems: list[str]


class Audience:
    """
    Clients that watch a daemon: readers of C{/events}, and one that gets C{/metrics} each second. They are in
    a process of their own.

    @param port: the daemon's.
    @param readers: how many there are.
    """

    def __init__(self, port: int, *, readers: int) -> None:
        self._process = OwnProcess("audience")
        self._words = [str(port), str(readers)]

    def start(self) -> None:
        """Connect, and wait until every reader is served."""
        program = Path(__file__).with_name("audience_process.py")
        self._process.start(
            [sys.executable, str(program), *self._words], lambda: "ready" in self._process.log
        )

    def finish(self) -> Watched:
        """Disconnect."""
        self._process.signal(signal.SIGTERM)
        status = self._process.wait(_PATIENCE_SECONDS)
        if status:
            raise RuntimeError(f"the audience ended with {status}:\n{self._process.log}")
        return Watched(**json.loads(self._process.log.splitlines()[-1]))

    def stop(self) -> None:
        """End it."""
        self._process.clean_up()
