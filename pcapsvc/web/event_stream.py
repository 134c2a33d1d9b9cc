"""
C{/events}: what happens on the node, as server-sent events
(U{https://html.spec.whatwg.org/#server-sent-events}).

The last events are kept once for all readers. A reader only knows which of them it has. What is new is sent
to all of them a moment later, so that the work that is reported never waits for readers. A reader that is
slow finds the progress of captures left out, and is disconnected if it falls behind what is kept.
"""

# Twisted has hardly any types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer

from pcapsvc.core.errors import Problem
from pcapsvc.core.event import CaptureProgress, Event, Payload
from pcapsvc.core.labels import Labels
from pcapsvc.core.result import StartedCapture
from pcapsvc.interfaces.reports import IProgressReporter
from pcapsvc.net.http_resource import Answer, AnswerCut, HTTPProblem, Resource
from pcapsvc.web.query import Parameters
from pcapsvc.web.stream import Stream

#: How many events are kept for readers that come back; and as many of the progress of captures.
KEPT_EVENTS = 1000

#: About how much memory these may occupy, in bytes: enough for as many events with the longest labels in
#: ASCII. Most take two kilobytes, and one about a request with many problems ten times as much.
MOST_KEPT_BYTES = 8 * 1024 * 1024

#: How many clients may read events at once.
MOST_READERS = 50

#: After how many seconds without an event a comment is sent: proxies may close a connection that is idle.
COMMENT_SECONDS = 15.0

#: How long an event waits for others, so that many are sent at once, in seconds.
GATHER_SECONDS = 0.02

# With this many events nothing is gathered any longer: some of them would make room for others.
_MOST_GATHERED = KEPT_EVENTS // 2
# What an event without text occupies: its objects, its JSON, and the frame.
_LEAST_EVENT_BYTES = 2000
# How much is sent at once, in bytes. Then it is looked whether the client reads.
_BATCH_BYTES = 32 * 1024
# How many progress events' ids are remembered when they are not kept any more.
_REMEMBERED_IDS = 4000

_TYPE_RULE = "must be a type of event, or the words that several begin with, such as pcapsvc.delivery"

#: When a client may try again after there were too many.
RETRY_AFTER_SECONDS = 10


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """
    Which events a reader wants.

    @ivar requestid: only those of requests with this C{requestid}; L{None} is all.
    @ivar types: only those of these types, which may be prefixes; none stands for all.
    """

    requestid: str | None = None
    types: tuple[str, ...] = ()

    def accepts(self, event: Event) -> bool:
        """Whether an event is wanted."""
        return self.requestid in (None, event.labels.requestid) and self.accepts_type(event.type)

    def accepts_type(self, type: str) -> bool:
        """Whether events of a type are wanted."""
        return not self.types or any(f"{type}.".startswith(f"{each}.") for each in self.types)


class _Kept(msgspec.Struct, frozen=True, dict=True):
    """
    An event that is kept.

    @ivar number: later ones have larger ones.
    @ivar size: about how much memory it occupies, in bytes.
    """

    number: int
    event: Event
    size: int

    @property
    def is_progress(self) -> bool:
        return isinstance(self.event.data, CaptureProgress)

    @cached_property
    def frame(self) -> bytes:
        """The event as it is sent, made once for all readers."""
        event = self.event
        return b"id: %s\nevent: %s\ndata: %s\n\n" % (event.id.encode(), event.type.encode(), event.json)


def _size(event: Event) -> int:
    """About how much memory an event occupies, in bytes, with its JSON, which would take longer to make."""
    return _LEAST_EVENT_BYTES + 2 * sum(map(_text_bytes, (event.labels, event.data)))


def _text_bytes(value: Any) -> int:
    """How many bytes there are at most in the texts of labels, a payload, or what these consist of."""
    match value:
        case str():
            return len(value) if value.isascii() else 4 * len(value)
        case tuple():
            return sum(map(_text_bytes, value))
        case Labels() | Payload() | Problem() | StartedCapture():
            return sum(_text_bytes(getattr(value, name)) for name in value.__struct_fields__)
    return 0


@implementer(IProgressReporter)
class EventStreams:
    """
    Keeps the last events, and passes them on to readers.

    @param reactor: provides time.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._number = 0
        # By number, the oldest first; and the numbers of those that are progress, and of the others.
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._progress: deque[int] = deque()
        self._others: deque[int] = deque()
        self._bytes = 0
        # The numbers of events, by id; among them some that are not kept any more.
        self._numbers: dict[str, int] = {}
        self._forgotten: deque[str] = deque()
        self._readers: dict[EventReader, None] = {}
        self._gathered = 0
        self._due: Any = None

    def wants_progress(self) -> bool:
        """Whether anybody reads it."""
        return any(reader.filter.accepts_type(CaptureProgress.type) for reader in self._readers)

    def report(self, event: Event) -> None:
        """Keep an event, and pass it on soon."""
        self._number += 1
        kept = _Kept(self._number, event, _size(event))
        self._bytes += kept.size
        self._kept[kept.number] = kept
        self._numbers[event.id] = kept.number
        (self._progress if kept.is_progress else self._others).append(kept.number)
        self._make_room()
        if not self._readers:
            return
        self._gathered += 1
        if self._gathered >= _MOST_GATHERED:
            self._send()
        elif self._due is None:
            self._due = self._reactor.callLater(GATHER_SECONDS, self._send)

    def reader(self, filter: Filter, last_id: str | None) -> EventReader:
        """
        A new reader, which takes a place until it is stopped.

        @param last_id: the id of the last event that it has; L{None} if it wants only what is to come.

        @raise HTTPProblem: if there are too many.
        """
        if len(self._readers) >= MOST_READERS:
            raise HTTPProblem(
                503,
                f"{MOST_READERS} clients are reading events already.",
                headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
            )
        # What isn't known may be older than everything here, such as from before a restart.
        after = self._number if last_id is None else self._numbers.get(last_id, 0)
        reader = EventReader(self._reactor, self, filter, after)
        self._readers[reader] = None
        return reader

    def leave(self, reader: EventReader) -> None:
        """A reader reads no more."""
        self._readers.pop(reader, None)
        if not self._readers:
            self._stop_gathering()

    def after(self, number: int) -> Iterator[_Kept]:
        """The events that are kept, from a number on, the oldest first."""
        newer = []
        for kept in reversed(self._kept.values()):
            if kept.number <= number:
                break
            newer.append(kept)
        return reversed(newer)

    def _send(self) -> None:
        self._stop_gathering()
        for reader in list(self._readers):
            reader.go_on()

    def _stop_gathering(self) -> None:
        self._gathered = 0
        if self._due is not None and self._due.active():
            self._due.cancel()
        self._due = None

    def _make_room(self) -> None:
        """Forget what is too much, the oldest first; of the bytes, progress before anything else."""
        while len(self._progress) > KEPT_EVENTS or (self._bytes > MOST_KEPT_BYTES and self._progress):
            kept = self._forget(self._progress)
            self._forgotten.append(kept.event.id)
            if len(self._forgotten) > _REMEMBERED_IDS:
                self._numbers.pop(self._forgotten.popleft(), None)
        while len(self._others) > KEPT_EVENTS or (self._bytes > MOST_KEPT_BYTES and len(self._others) > 1):
            kept = self._forget(self._others)
            self._numbers.pop(kept.event.id, None)
            for reader in list(self._readers):
                reader.forgotten(kept)

    def _forget(self, numbers: deque[int]) -> _Kept:
        kept = self._kept.pop(numbers.popleft())
        self._bytes -= kept.size
        return kept


@implementer(IBodyProducer)
class EventReader(Stream):
    """
    A client that reads events.

    @param after: the number of the last event that it has.
    """

    def __init__(self, reactor: Any, streams: EventStreams, filter: Filter, after: int) -> None:
        self._reactor = reactor
        self._streams = streams
        self._after = after
        self._is_behind = False
        self._comment: Any = None
        self.filter = filter
        self.length: Any = UNKNOWN_LENGTH

    def startProducing(self, consumer: Any) -> Deferred[None]:
        """See L{IBodyProducer}."""
        self._wait_to_comment()
        return super().startProducing(consumer)

    def pauseProducing(self) -> None:
        """See L{IBodyProducer}."""
        super().pauseProducing()
        self._is_behind = True

    def stopProducing(self) -> None:
        """See L{IBodyProducer}."""
        super().stopProducing()
        self._streams.leave(self)
        if self._comment is not None and self._comment.active():
            self._comment.cancel()
        self._comment = None

    def forgotten(self, kept: _Kept) -> None:
        """An event is not kept any more. A reader that wants it, and doesn't have it, is disconnected."""
        if kept.number > self._after and self.filter.accepts(kept.event):
            self._end(Failure(AnswerCut()))

    def go_on(self) -> None:
        """Send what is new, as far as the client reads."""
        self._go_on()

    def _go_on(self) -> None:
        if self._done is None or self._is_paused:
            return
        try:
            self._send()
        except Exception:  # noqa: BLE001 - one reader ends, and nothing else does
            self._end(Failure())

    def _send(self) -> None:
        batch: list[bytes] = []
        size = 0
        for kept in self._streams.after(self._after):
            self._after = kept.number
            if not self.filter.accepts(kept.event) or (self._is_behind and kept.is_progress):
                continue
            batch.append(kept.frame)
            size += len(kept.frame)
            if size >= _BATCH_BYTES:
                self._write(b"".join(batch))
                batch, size = [], 0
                if self._is_paused:
                    return
        self._is_behind = False
        if batch:
            self._write(b"".join(batch))

    def _write(self, data: bytes) -> None:
        self._consumer.write(data)
        if self._comment is not None and self._comment.active():
            self._comment.reset(COMMENT_SECONDS)

    def _wait_to_comment(self) -> None:
        self._comment = self._reactor.callLater(COMMENT_SECONDS, self._send_comment)

    def _send_comment(self) -> None:
        self._wait_to_comment()
        if not self._is_paused:
            self._consumer.write(b":\n\n")


class Events(Resource):
    """C{/events}."""

    allowedMethods = (b"GET", b"HEAD")

    def __init__(self, streams: EventStreams) -> None:
        super().__init__()
        self._streams = streams

    def render_GET(self, request: Any) -> Answer:
        """The events that happen from now on, or since one that the client has."""
        known = [each.type for each in Payload.__subclasses__()]
        with Parameters(request, ("requestid", "type"), repeatable=("type",)) as given:
            types = tuple(dict.fromkeys(given.all("type")))
            for type in types:
                if not any(map(Filter(types=(type,)).accepts_type, known)):
                    given.reject("type", _TYPE_RULE, type)
            filter = Filter(requestid=given.text("requestid"), types=types)
        last_id = request.header("Last-Event-ID") or None
        return Answer(
            media_type="text/event-stream",
            body=self._streams.reader(filter, last_id),
            # nginx would wait until there is more to pass on.
            headers={"X-Accel-Buffering": "no"},
        )
