"""When captures in the local directory are removed, and what is reported of that."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from pcapsvc.core.kept_file import REMOVAL_REASONS, KeptFile, KeptFiles, Limits, Removal, SteadyClock
from pcapsvc.destinations.local.ledger import Ledger
from pcapsvc.destinations.local.sweep import Sweeper
from pcapsvc.interfaces.threads import RunInThread

#: How often captures are looked at that nobody adds to, in seconds.
INTERVAL_SECONDS = 60.0
# For so many captures it is known that they were removed. A node remembers no more captures than this.
_MOST_REMEMBERED = 1000

_WORDS = {
    "size": "the captures in {directory} exceed [local] maxsize",
    "age": "it is older than [local] maxage",
}


class Retention:
    """
    Keeps the captures in a directory within their limits: after each delivery, and from time to time.

    @param directory: an absolute path.
    @param run_in_thread: for the directory, whose disk may hang: of threads that nothing else needs.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, *, directory: str, limits: Limits, run_in_thread: RunInThread, clock: SteadyClock
    ) -> None:
        self._reactor = reactor
        self._directory = directory
        self._run_in_thread = run_in_thread
        self._ledger = Ledger(clock)
        self._sweeper = Sweeper(directory, self._ledger, limits, clock)
        self._sweeping: Deferred[None] | None = None
        self._is_wanted = False
        self._timer: Any = None
        self._problems: set[str] = set()
        self._counts = dict.fromkeys(REMOVAL_REASONS, 0)
        self._removed: OrderedDict[str, None] = OrderedDict()

    def start(self) -> None:
        """Look at the directory now, and from time to time."""
        self._timer = self._reactor.callLater(INTERVAL_SECONDS, self.start)
        self.wake()

    def stop(self) -> None:
        """Don't look any more. A thread that is removing files goes on with that, for a moment."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        self._is_wanted = False
        if self._sweeping is not None:
            self._sweeping.cancel()

    def wake(self) -> None:
        """Look at the directory, as soon as that isn't being done already."""
        self._is_wanted = True
        if self._sweeping is None and self._timer is not None:
            sweeping = Deferred.fromCoroutine(self._sweep())
            if not sweeping.called:
                self._sweeping = sweeping

    def is_removed(self, name: str) -> bool:
        """Whether a capture is known to be removed."""
        return name in self._removed

    def kept(self) -> KeptFiles:
        """What is kept."""
        return KeptFiles(files=len(self._ledger), bytes=self._ledger.bytes, removed=dict(self._counts))

    def record(self, directory_fd: int, name: str, found: os.stat_result) -> KeptFile | None:
        """See L{Ledger.record}. Call it in a thread."""
        return self._ledger.record(directory_fd, name, found)

    def settle(self, file: KeptFile, *, made: bool) -> None:
        """
        The file of a capture that was recorded has its name, or not.

        @param made: whether it has.
        """
        (self._ledger.confirm if made else self._ledger.abandon)(file)

    async def _sweep(self) -> None:
        try:
            while self._is_wanted:
                self._is_wanted = False
                swept = await self._run_in_thread(self._sweeper.turn)
                for removal in swept.removals:
                    self._report(removal)
                self._log_problems(*swept.problems)
                self._is_wanted = self._is_wanted or swept.has_more
        except CancelledError:
            pass
        except OSError as error:
            self._log_problems(error.strerror or str(error))
        except Exception:  # noqa: BLE001 - captures go on; it is tried again
            self._log.failure("internal error while old captures were to be removed")
        finally:
            self._sweeping = None
            for note in self._ledger.notes.take_new():
                self._log.warn("{directory}: {note}", directory=self._directory, note=note)

    def _report(self, removal: Removal) -> None:
        self._counts[removal.reason] += 1
        self._removed[removal.name] = None
        if len(self._removed) > _MOST_REMEMBERED:
            self._removed.popitem(last=False)
        self._log.info(
            "removed the capture {name} ({size} bytes, {age} s old): {why}",
            name=removal.name,
            size=removal.size,
            age=round(removal.age),
            why=_WORDS[removal.reason].format(directory=self._directory),
        )

    def _log_problems(self, *problems: str) -> None:
        """Each is logged once."""
        for problem in problems:
            if problem not in self._problems:
                self._problems.add(problem)
                self._log.warn(
                    "old captures can't be removed from {directory}: {problem}",
                    directory=self._directory,
                    problem=problem,
                )
