"""What is known of filters that were compiled before."""

from __future__ import annotations

from collections import OrderedDict

from msgspec.structs import replace

from pcapsvc.core.filter import FilterRejected, Program
from pcapsvc.packets.filter_worker import FilterKey

#: How long a rejection is remembered, in seconds: with another libpcap, or less load, it may be another one.
REJECTED_SECONDS = 60.0

# The programs that are kept for the next request, in bytes of their instructions, and how many they may be.
_CACHED_BYTES = 1 << 20
_CACHED_PROGRAMS = 256
# Apart from those, so that rejected filters don't displace the others.
_CACHED_REJECTIONS = 256


class FilterCache:
    """
    The programs that were used last, and the latest rejections.

    A filter that can't be compiled in time costs seconds of processor time. Remembered, it costs them once.
    """

    def __init__(self) -> None:
        self._programs: OrderedDict[FilterKey, Program] = OrderedDict()
        self._bytes = 0
        # The problem of each, and until when it is remembered: the oldest first.
        self._rejections: OrderedDict[FilterKey, tuple[str, float]] = OrderedDict()

    def get(self, key: FilterKey, now: float) -> Program | FilterRejected | None:
        """
        The program of a filter, or why it was rejected, if that is known.

        @param now: the monotonic time, in seconds.
        """
        program = self._programs.get(key)
        if program is not None:
            self._programs.move_to_end(key)
            return program
        while self._rejections and next(iter(self._rejections.values()))[1] <= now:
            self._rejections.popitem(last=False)
        if key in self._rejections:
            return FilterRejected(key.bpf, self._rejections[key][0])
        return None

    def put(self, key: FilterKey, program: Program) -> None:
        """Keep a program, and forget the oldest if there are too many."""
        self._programs[key] = replace(program, compile_seconds=0.0)
        self._bytes += len(program.instructions)
        while self._bytes > _CACHED_BYTES or len(self._programs) > _CACHED_PROGRAMS:
            _, oldest = self._programs.popitem(last=False)
            self._bytes -= len(oldest.instructions)

    def put_rejection(self, key: FilterKey, rule: str, now: float) -> None:
        """
        Keep a rejection for L{REJECTED_SECONDS}, and forget the oldest if there are too many.

        @param rule: what is wrong with the filter.
        @param now: the monotonic time, in seconds.
        """
        self._rejections[key] = (rule, now + REJECTED_SECONDS)
        self._rejections.move_to_end(key)
        while len(self._rejections) > _CACHED_REJECTIONS:
            self._rejections.popitem(last=False)
