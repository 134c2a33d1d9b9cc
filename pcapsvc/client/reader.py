"""Reads events from one or more places at once, each in a thread, and reconnects."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from pcapsvc.client.address import Address
from pcapsvc.client.at_once import at_once, start_thread
from pcapsvc.client.connections import Connections
from pcapsvc.client.interruption import uninterrupted
from pcapsvc.client.status import ClientError, not_understood
from pcapsvc.client.transport import IEventStream, ITransport

_PAUSE_SECONDS = 1.0
#: How many events may wait to be taken, and how many bytes they may have together. If nobody takes them, the
#: places have to wait, or drop their events.
MOST_WAITING = 1000
MOST_WAITING_BYTES = 8 * 1024 * 1024
#: The longest event, in bytes. Most of it is from a request, which has up to 64 KiB; JSON may need six bytes
#: for each of them.
MOST_EVENT_BYTES = 1024 * 1024


class EventReader:
    """
    The events of some places, from now on.

    A place that can't be read is tried again, and the problem is reported.

    @raise ClientError: if none of them can be read now: that of the first; or if there are too few threads.
    """

    def __init__(self, connections: Connections, places: Sequence[Address], requestid: str | None) -> None:
        self._requestid = requestid
        self._places = tuple(places)
        self._found = FoundEvents()
        self._stopped = threading.Event()
        self._streams: dict[int, IEventStream] = {}
        transports = [connections.transport(address) for address in places]
        opened = at_once(self._open, enumerate(transports))
        problems = [problem for problem in opened if problem is not None]
        if len(problems) == len(transports):
            raise problems[0]
        for number, transport in enumerate(transports):
            start_thread(self._read, number, transport, opened[number])

    def take(self, seconds: float) -> Iterator[dict[str, Any] | str]:
        """
        What has arrived: events, and problems in words. Waits this long for the first.

        What arrives meanwhile is for the next time: it may never end.
        """
        self._found.wait(seconds)
        for _ in range(self._found.size()):
            item = self._found.first()
            event = item if isinstance(item, str) else _decode(item)
            if event is not None:
                yield event
            # Not before: if its use is interrupted, it is there the next time.
            self._found.remove_first()

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
        except Exception as problem:  # noqa: BLE001 - of whatever kind: others may be fine
            return not_understood(self._places[number], problem)
        return None

    def _read(self, number: int, transport: ITransport, problem: ClientError | None) -> None:
        said: str | None = None
        if problem is not None:
            said = str(problem)
            self._put(f"events: {said}")
            self._stopped.wait(_PAUSE_SECONDS)
        while not self._stopped.is_set():
            try:
                if number not in self._streams:
                    self._streams[number] = transport.events(self._requestid)
                for body in self._streams[number]:
                    if len(body) <= MOST_EVENT_BYTES:
                        said = None
                        self._put(body)
                        continue
                    words = f"{self._places[number]}: an event is too long, and is ignored"
                    if words != said:
                        said = words
                        self._put(f"events: {said}")
            except Exception as problem:  # noqa: BLE001 - of whatever kind: this thread must go on
                words = _words(problem, self._places[number])
                if words != said and not self._stopped.is_set():
                    said = words
                    self._put(f"events: {said}")
            stream = self._streams.pop(number, None)
            if stream is not None:
                stream.close()
            self._stopped.wait(_PAUSE_SECONDS)

    def _put(self, item: bytes | str) -> None:
        """Have it taken. Waits until there is room."""
        while not self._stopped.is_set() and not self._found.put(item, _PAUSE_SECONDS):
            pass


class FoundEvents:
    """Events as they arrived, and problems in words, until they are taken."""

    def __init__(self) -> None:
        self._items: deque[bytes | str] = deque()
        self._bytes = 0
        self._changed = threading.Condition()

    def size(self) -> int:
        """How many there are."""
        return len(self._items)

    def put(self, item: bytes | str, seconds: float) -> bool:
        """Add one, if there is room for it within this time. Return whether there is."""
        with self._changed:
            if not self._changed.wait_for(self._has_room, seconds):
                return False
            self._items.append(item)
            self._bytes += len(item)
            self._changed.notify_all()
            return True

    def wait(self, seconds: float) -> None:
        """Wait until there is one, at most this long."""
        with uninterrupted(), self._changed:
            self._changed.wait_for(self.size, seconds)

    def first(self) -> bytes | str:
        """The first one."""
        return self._items[0]

    def remove_first(self) -> None:
        """Make room for others."""
        with uninterrupted(), self._changed:
            self._bytes -= len(self._items.popleft())
            self._changed.notify_all()

    def _has_room(self) -> bool:
        return len(self._items) < MOST_WAITING and self._bytes < MOST_WAITING_BYTES


def _decode(body: bytes) -> dict[str, Any] | None:
    """An event; L{None} if it is something else."""
    try:
        event = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("data"), dict) else None


def _words(problem: Exception, place: Address) -> str:
    return str(problem if isinstance(problem, ClientError) else not_understood(place, problem))
