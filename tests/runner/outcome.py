"""What came of the tests: counted, timed, and described for whoever reads the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.runner.schedule import Duration, Job, duration_key


def module_of(test: str, names: tuple[str, ...]) -> str:
    """
    Which of a job's names a test belongs to.

    @param test: a test's id: C{tests.unit.test_x.Case.test_y}; the module's name if it can't be imported.
    """
    return next((one for one in names if test == one or test.startswith(f"{one}.")), names[0])


@dataclass
class Tally:
    """
    The outcomes of all tests.

    @ivar failures: each failed test's id, and what to show of it.
    @ivar reasons: how many tests were skipped, by the reason.
    @ivar durations: how long each module took, by L{duration_key}.
    """

    passed: int = 0
    skipped: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    durations: dict[str, Duration] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """The last line of a run."""
        return f"{self.passed} passed, {len(self.failures)} failed, {self.skipped} skipped"

    def add_failure(self, test: str, text: str) -> None:
        """A test failed, or its process did."""
        self.failures.append((test, text))

    def details(self) -> Iterator[str]:
        """All failures in full, and why tests were skipped."""
        for test, text in self.failures:
            yield f"{'=' * 78}\nFAILED {test}\n\n{text.rstrip()}\n"
        for reason, count in self.reasons.most_common():
            yield f"skipped {count}: {reason}"


class JobProgress:
    """
    Follows one process by the events that it reports.

    @ivar finished: the names of the job that are done.
    @ivar ready: whether it has loaded its tests.
    @ivar ended: whether it reported its end.
    @ivar running: the id of the test that is running.
    @ivar timeout_seconds: how long that one may take, if it says so; otherwise 0.
    """

    def __init__(self, job: Job, tally: Tally) -> None:
        self._job = job
        self._tally = tally
        self._module: str | None = None
        self._module_started = (0.0, 0.0)
        self._counts: Counter[str] = Counter()
        # When, and after how many seconds of processor time.
        self._last = (0.0, 0.0)
        self.finished: list[str] = []
        self.ready = False
        self.ended = False
        self.running: str | None = None
        self.timeout_seconds = 0.0

    def event(self, event: Mapping[str, Any]) -> str | None:
        """
        Take one event.

        @return: a line that sums up a module, if one ended with it.
        """
        summary = None
        if event["event"] == "ready":
            self._look_at_clocks(event)
            self.ready = True
            return None
        if event["event"] == "end":
            self.ended = True
            return self._finish_module()
        test = event["test"]
        module = module_of(test, self._job.names)
        if module != self._module:
            summary = self._finish_module()
            self._module = module
            self._module_started = self._last
        self._look_at_clocks(event)
        self.timeout_seconds = event.get("timeout") or 0.0
        self._count(event["event"], test, event["text"])
        return summary

    def unfinished(self) -> tuple[str, ...]:
        """The names that did not run, after a process that died: those behind the one that it died in."""
        gone = {*self.finished, self._module or self._job.names[0]}
        return tuple(name for name in self._job.names if name not in gone)

    def _look_at_clocks(self, event: Mapping[str, Any]) -> None:
        # Only some events have the time of processors.
        self._last = (event["time"], event.get("cpu", self._last[1]))

    def _count(self, kind: str, test: str, text: str) -> None:
        if kind == "start":
            self.running = test
        elif kind == "stop":
            self.running = None
        elif kind == "passed":
            self._tally.passed += 1
            self._counts["passed"] += 1
        elif kind == "skipped":
            self._tally.skipped += 1
            self._tally.reasons[text] += 1
            self._counts["skipped"] += 1
        elif kind == "failed":
            self._counts["failed"] += 1
            self._tally.add_failure(test, text)

    def _finish_module(self) -> str | None:
        if self._module is None:
            return None
        seconds, busy = (now - then for now, then in zip(self._last, self._module_started, strict=True))
        # What a child has taken is lost if nobody waited for it.
        busy = max(0.0, busy)
        self._tally.durations[duration_key(self._module, alone=self._job.alone)] = Duration(seconds, busy)
        self.finished.append(self._module)
        counts = ", ".join(
            f"{self._counts[kind]} {kind}" for kind in ("passed", "failed", "skipped") if self._counts[kind]
        )
        summary = f"{seconds:7.1f} s, {busy:5.1f} s busy  {self._module}: {counts or 'no tests'}"
        self._module = None
        self._counts.clear()
        return summary
