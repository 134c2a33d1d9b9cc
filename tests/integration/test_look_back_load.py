"""Captures that look back on a busy wire: their files, compared with everything that was recorded."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from operator import lt
from typing import Any

from peers.tcpdump import field_of, numbers_of
from tests.chance import chance
from tests.integration.look_back_case import LookBackCase
from tests.integration.traffic import generate

# Packets are lost if the daemon is not scheduled for long enough.
needs_machine_alone = True

_RATE = 300_000
# For how long: with random requests, and until 1.5 million packets are remembered and extracted.
_SECONDS = 6
_LONGER_SECONDS = 7
_REQUESTS = 100
_AT_ONCE = 8
_SIZE = 128
_SNAP = 64
# Whatever else this machine does: a ring that holds what comes in two seconds.
_PATIENT = f"[capture]\nbuffersize = {128 << 20}\n"
# How exact time limits are, in seconds, and how exact time stamps are compared.
_EXACT_SECONDS = 0.1
_MICROSECOND = 1e-6


@dataclass(frozen=True, kw_only=True)
class Filter:
    """
    A filter by the numbers of packets.

    @ivar step: passes each packet whose number is C{rest} more than a multiple of this.
    @ivar start: passes packets from this number on; C{end} is one beyond the last.
    """

    step: int = 1
    rest: int = 0
    start: int = 0
    end: int = 1 << 32

    @property
    def bpf(self) -> str:
        """It in the language of pcap-filter(7)."""
        words = []
        if self.step > 1:
            words.append(f"udp[12:4] % {self.step} = {self.rest}")
        if self.start:
            words.append(f"udp[12:4] >= {self.start}")
        if self.end < 1 << 32:
            words.append(f"udp[12:4] < {self.end}")
        return " and ".join(words)

    def passes(self, number: int) -> bool:
        """Whether it passes a packet of this number."""
        return self.start <= number < self.end and number % self.step == self.rest


@dataclass(frozen=True, kw_only=True)
class Asked:
    """
    A request, and what came of it.

    @ivar began: the time before it was sent, and C{answered} the time after its answer, in seconds since the
        Unix epoch.
    @ivar first: the number of the first packet in its file; L{None} if there is none.
    @ivar digest: of the file's packets.
    """

    message: dict[str, Any]
    wanted: Filter
    began: float
    answered: float
    state: dict[str, Any]
    packets: int
    first: int | None
    digest: bytes


class Recorded:
    """
    All packets of a file.

    @param content: of a pcap file, whose packets are all of the same size.
    """

    def __init__(self, content: bytes) -> None:
        self._records = memoryview(content)[24:]
        self._size = 16 + _SIZE
        self.numbers = numbers_of(self._records, self._size)

        self._seconds, self._microseconds = (field_of(self._records, self._size, at) for at in (0, 4))

    def time(self, index: int) -> float:
        """When a packet arrived, in seconds since the Unix epoch."""
        return self._seconds[index] + self._microseconds[index] / 1e6

    def within(self, start: float, end: float) -> range:
        """The indices of the packets that arrived from one time to another, both included."""
        indices = range(len(self.numbers))
        return range(bisect_left(indices, start, key=self.time), bisect_right(indices, end, key=self.time))

    @cached_property
    def _runs(self) -> list[range]:
        """The indices of packets whose numbers follow each other: all of them, unless some were dropped."""
        runs: list[range] = []
        indices = range(len(self.numbers))
        start = 0
        while start < len(indices):
            # How many are missing before a packet only grows.
            before = self.numbers[start] - start
            end = bisect_right(indices, before, lo=start, key=lambda at: self.numbers[at] - at)
            runs.append(range(start, end))
            start = end
        return runs

    @cached_property
    def _cut(self) -> memoryview:
        """All records, cut to the shorter snap length."""
        # Eight bytes of all records at a time: single bytes take seconds.
        size, width = 16 + _SNAP, 8
        wide = self._records.cast("Q")
        cut = array("Q", bytes(len(self.numbers) * size))
        for at in range(size // width):
            cut[at :: size // width] = array("Q", wide[at :: self._size // width].tobytes())
        records = memoryview(cut).cast("B")
        lengths = array("I", [_SNAP]) * len(self.numbers)
        # What is captured of each, in its header.
        records.cast("I")[2 :: size // 4] = memoryview(lengths)
        return records

    def passing(self, wanted: Filter, start: int = 0) -> Iterable[int]:
        """The indices of the packets that pass a filter, from an index on."""
        start = max(start, bisect_left(self.numbers, wanted.start))
        end = bisect_left(self.numbers, wanted.end)
        if wanted.step == 1:
            return range(start, end)
        return chain.from_iterable(self._every(wanted, start, end))

    def _every(self, wanted: Filter, start: int, end: int) -> Iterator[range]:
        for run in self._runs:
            first, last = max(start, run.start), min(end, run.stop)
            if first < last:
                yield range(first + (wanted.rest - self.numbers[first]) % wanted.step, last, wanted.step)

    def last_before(self, wanted: Filter, index: int) -> int | None:
        """The index of the last packet before another one that passes a filter."""
        start = bisect_left(self.numbers, wanted.start)
        end = min(index, bisect_left(self.numbers, wanted.end))
        passing = (at for at in range(end - 1, start - 1, -1) if wanted.passes(self.numbers[at]))
        return next(passing, None)

    def digest(self, indices: Sequence[int], snap: int) -> bytes:
        """Of these packets, cut to a snap length."""
        records, size = (self._records, self._size) if snap >= _SIZE else (self._cut, 16 + snap)
        if isinstance(indices, range):
            return hashlib.sha256(records[indices.start * size : indices.stop * size]).digest()
        return hashlib.sha256(b"".join(records[at * size : (at + 1) * size] for at in indices)).digest()


class BusyLookBackTests(LookBackCase):
    """300,000 numbered packets a second, or as many as this machine can send."""

    def setUp(self) -> None:
        super().setUp()
        size = _RATE * _LONGER_SECONDS * (16 + _SIZE)
        self.daemon = self.start(
            f"history = 600\nhistorysize = {size * 5 // 4}\nhistorysnap = {_SIZE}",
            more=_PATIENT,
            general=f"maxcaptures = {2 * _AT_ONCE}\nmaxpackets = 100000000\nmaxbytes = {2 * size}\n"
            f"maxmemory = {8 << 30}",
        )
        self.sent = 0

    def sending(self, seconds: int) -> threading.Thread:
        """A thread that sends packets, for so long."""

        def send() -> None:
            self.sent = generate(self.wire, _RATE * seconds, rate=_RATE, size=_SIZE)

        thread = threading.Thread(target=send)
        thread.start()
        self.addCleanup(thread.join)
        return thread

    def recorded(self) -> Recorded:
        """Everything that was recorded."""
        capture = self.capture(self.daemon, before=600, pastonly=True)
        state = self.daemon.done(capture)
        found = Recorded(self.daemon.file_of(capture).read_bytes())
        self.assertEqual(len(found.numbers), state["packets"])
        self.assertEqual(self.sent - len(found.numbers), self.history(self.daemon)["dropped"])
        self.assertTrue(all(map(lt, found.numbers, islice(found.numbers, 1, None))))
        return found

    def ask(self, message: dict[str, Any], wanted: Filter) -> Asked:
        """Make a request, and wait for its file."""
        began = time.time()
        capture = self.capture(self.daemon, **message)
        answered = time.time()
        state = self.daemon.done(capture)
        self.assertEqual(state["state"], "done", state)
        content = memoryview(bytes(24))
        # Without a packet there is no file.
        if state["packets"]:
            path = self.daemon.file_of(capture)
            content = memoryview(path.read_bytes())
            path.unlink()
            self.assertEqual(len(content), state["bytes"])
        size = 16 + min(_SIZE, message["snap"])
        numbers = numbers_of(content[24:], size)
        return Asked(
            message=message,
            wanted=wanted,
            began=began,
            answered=answered,
            state=state,
            packets=len(numbers),
            first=numbers[0] if numbers else None,
            digest=hashlib.sha256(content[24:]).digest(),
        )

    def test_random_requests(self) -> None:
        """A hundred of them, several at a time: every file has exactly the packets that it should have."""
        chosen = chance(self.id())
        moments = sorted(chosen.uniform(0.3, _SECONDS) for _ in range(_REQUESTS))
        requests = [_random_request(chosen) for _ in moments]
        sending = self.sending(_SECONDS)
        self.remembered(self.daemon, 1)
        began = time.monotonic()

        def at_its_moment(moment: float, message: dict[str, Any], wanted: Filter) -> Asked:
            time.sleep(max(0.0, began + moment - time.monotonic()))
            return self.ask(message, wanted)

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            each = [pool.submit(at_its_moment, at, *one) for at, one in zip(moments, requests, strict=True)]
        sending.join()
        recorded = self.recorded()
        found = [one.result() for one in each]
        for one in found:
            self.check(recorded, one)
        self.assertGreater(sum(one.packets for one in found), 0)
        past = [one.state["history"]["packets"] for one in found]
        self.assertGreater(sum(packets > 0 for packets in past), _REQUESTS // 4)
        # Among them are some whose past is joined to what followed; on a busy machine, few are asked in time.
        joined = sum(0 < packets < one.packets for packets, one in zip(past, found, strict=True))
        self.assertGreater(joined, 0)

    def check(self, recorded: Recorded, one: Asked) -> None:
        """Compare a file with what was recorded."""
        message, wanted, time_of = one.message, one.wanted, recorded.time
        words = f"{message}: {one}"
        start, until = one.began - message["before"], one.answered - message["before"]
        past_only, reason = "pastonly" in message, one.state["reason"]
        is_limited = "limit" in [each["reason"] for each in one.state["history"]["missing"]]
        if one.first is None:
            end = one.began if past_only else one.began + message["duration"] - _EXACT_SECONDS
            within = recorded.within(until, end)
            missed = next(iter(recorded.passing(wanted, within.start)), within.stop)
            self.assertGreaterEqual(missed, within.stop, words)
            return
        first = bisect_left(recorded.numbers, one.first)
        found = recorded.passing(wanted, first)
        indices = found[: one.packets] if isinstance(found, range) else list(islice(found, one.packets))
        # None is missing, none is there twice, all are in order, and none is another one.
        self.assertEqual(len(indices), one.packets, words)
        self.assertEqual(recorded.digest(indices, message["snap"]), one.digest, words)
        # It begins where it should.
        self.assertGreaterEqual(time_of(first), start - _MICROSECOND, words)
        before = recorded.last_before(wanted, first)
        if not is_limited and before is not None:
            self.assertLess(time_of(before), until + _MICROSECOND, words)
        # It ends where it should.
        last = indices[-1]
        next_one = next(iter(recorded.passing(wanted, last + 1)), None)
        record = 16 + min(_SIZE, message["snap"])
        match reason:
            case "packets":
                self.assertEqual(one.packets, message["packets"], words)
            case "bytes" if is_limited:
                # As many as fit.
                self.assertEqual(one.packets, (message["bytes"] - 24) // record, words)
            case "bytes":
                # The one that reaches the limit is the last.
                self.assertEqual(one.packets, -(-(message["bytes"] - 24) // record), words)
            case "duration":
                self.assertIn("duration", message, words)
                self.assertLess(time_of(last), one.answered + message["duration"] + _EXACT_SECONDS, words)
                end = one.began + message["duration"] - _EXACT_SECONDS
                self.assertTrue(next_one is None or time_of(next_one) > end, words)
            case _:
                self.assertEqual((reason, past_only), ("past", True), words)
        if past_only:
            self.assertIn(reason, ("past", "packets", "bytes"), words)
            self.assertLess(time_of(last), one.answered + _MICROSECOND, words)
            self.assertTrue(next_one is None or time_of(next_one) > one.began, words)

    def test_running_captures(self) -> None:
        """1.5 million packets are extracted, and captures that run lose nothing."""
        captures = [
            self.daemon.capture(interface=[self.wire.interface], packets=_RATE * _LONGER_SECONDS, bpf=bpf)
            for bpf in ("", "udp[12:4] % 10 = 3")
        ]
        sending = self.sending(_LONGER_SECONDS)
        self.remembered(self.daemon, 1_500_000)
        taken = self.ask({"before": 600, "pastonly": True, "packets": 1_500_000, "snap": _SIZE}, Filter())
        sending.join()
        recorded = self.recorded()
        self.check(recorded, taken)
        self.assertEqual(taken.packets, 1_500_000)
        for capture, wanted in zip(captures, (Filter(), Filter(step=10, rest=3)), strict=True):
            state = self.daemon.read(capture)
            found = Recorded(self.daemon.file_of(capture).read_bytes())
            self.assertEqual(state["dropped"], 0)
            expected = range(wanted.rest, self.sent, wanted.step)
            self.assertEqual(found.numbers, array("I", expected))


def _random_request(chosen: random.Random) -> tuple[dict[str, Any], Filter]:
    message: dict[str, Any] = {
        "before": chosen.choice((1, 1, 2, 3, 60)),
        "snap": chosen.choice((_SIZE, _SIZE, _SNAP)),
    }
    if chosen.random() < 0.6:
        message["pastonly"] = True
    else:
        message["duration"] = 1
    match chosen.randrange(6):
        case 0 | 1:
            message["packets"] = chosen.randrange(1, 200_000)
        case 2 | 3:
            message["bytes"] = chosen.randrange(1_000, 20_000_000)
    match chosen.randrange(4):
        case 0:
            wanted = Filter()
        case 1:
            step = chosen.choice((2, 7, 100, 5000))
            wanted = Filter(step=step, rest=chosen.randrange(step))
        case 2:
            start = chosen.randrange(_RATE * _SECONDS)
            wanted = Filter(start=start, end=start + chosen.randrange(1, _RATE))
        case _:
            start = chosen.randrange(_RATE * _SECONDS)
            wanted = Filter(step=3, rest=1, start=start, end=start + chosen.randrange(1, 2 * _RATE))
    return {**message, "bpf": wanted.bpf}, wanted
