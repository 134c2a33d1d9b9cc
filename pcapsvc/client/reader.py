"""Reads events from one or more places at once, each in a thread, and reconnects."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from pcapsvc.client.address import Address
from pcapsvc.client.at_once import at_once
from pcapsvc.client.connections import Connections
from pcapsvc.client.status import ClientError
from pcapsvc.client.transport import IEventStream, ITransport

_PAUSE_SECONDS = 1.0


class EventReader:
    """
    The events of some places, from now on.

    A place that can't be read is tried again, and the problem is reported.

    @raise NoAnswer: if none of them can be read now.
    """

    def __init__(self, connections: Connections, places: Sequence[Address], requestid: str | None) -> None:
        self._requestid = requestid
        self._found: queue.SimpleQueue[dict[str, Any] | str] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._streams: dict[int, IEventStream] = {}
        transports = [connections.transport(address) for address in places]
        opened = at_once(self._open, enumerate(transports))
        problems = [problem for problem in opened if problem is not None]
        if len(problems) == len(transports):
            raise problems[0]
        for number, transport in enumerate(transports):
            arguments = (number, transport, opened[number])
            threading.Thread(target=self._read, args=arguments, daemon=True).start()

    def take(self, seconds: float) -> Iterator[dict[str, Any] | str]:
        """What has arrived: events, and problems in words. Waits this long for the first."""
        try:
            yield self._found.get(timeout=seconds)
            while True:
                yield self._found.get_nowait()
        except queue.Empty:
            return

    def close(self) -> None:
        """Stop reading."""
        self._stopped.set()
        for stream in list(self._streams.values()):
            stream.close()

    def _open(self, numbered: tuple[int, ITransport]) -> ClientError | None:
        number, transport = numbered
        try:
            self._streams[number] = transport.events(self._requestid)
        except ClientError as problem:
            return problem
        return None

    def _read(self, number: int, transport: ITransport, problem: ClientError | None) -> None:
        said: str | None = None
        if problem is not None:
            said = str(problem)
            self._found.put(f"events: {said}")
            self._stopped.wait(_PAUSE_SECONDS)
        while not self._stopped.is_set():
            try:
                if number not in self._streams:
                    self._streams[number] = transport.events(self._requestid)
                for body in self._streams[number]:
                    said = None
                    self._decode(body)
            except ClientError as problem:
                if str(problem) != said and not self._stopped.is_set():
                    said = str(problem)
                    self._found.put(f"events: {said}")
            stream = self._streams.pop(number, None)
            if stream is not None:
                stream.close()
            self._stopped.wait(_PAUSE_SECONDS)

    def _decode(self, body: bytes) -> None:
        try:
            event = json.loads(body)
        except (ValueError, RecursionError):
            return
        if isinstance(event, dict) and isinstance(event.get("data"), dict):
            self._found.put(event)
