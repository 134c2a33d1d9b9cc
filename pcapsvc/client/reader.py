"""Reads events from one or more places at once, each in a thread, and reconnects."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from pcapsvc.client.address import Address
from pcapsvc.client.connections import Connections
from pcapsvc.client.status import ClientError
from pcapsvc.client.transport import IEventStream, ITransport

_PAUSE_SECONDS = 1.0


class EventReader:
    """
    The events of some places, from now on.

    @raise NoAnswer: if one of them can't be read now. Later, it is tried again, and a problem is reported.
    """

    def __init__(self, connections: Connections, places: Sequence[Address], requestid: str | None) -> None:
        self._requestid = requestid
        self._found: queue.SimpleQueue[dict[str, Any] | str] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._streams: dict[int, IEventStream] = {}
        transports = [connections.transport(address) for address in places]
        try:
            for number, transport in enumerate(transports):
                self._streams[number] = transport.events(requestid)
        except ClientError:
            self.close()
            raise
        for number, transport in enumerate(transports):
            threading.Thread(target=self._read, args=(number, transport), daemon=True).start()

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

    def _read(self, number: int, transport: ITransport) -> None:
        said: str | None = None
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
