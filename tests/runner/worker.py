"""
One process of a run: it runs some tests with trial's runner, and reports each outcome as a line of JSON.

L{tests.runner.pool} has it forked, with the arguments C{--events FD --directory DIR [--alone] NAME...}
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import os
import sys
import time
import unittest
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from twisted.python.failure import Failure
from twisted.trial.reporter import Reporter
from twisted.trial.runner import TestLoader, TrialRunner
from twisted.trial.unittest import TestSuite

from tests.runner.machine import processor_seconds
from tests.runner.schedule import MARK

#: For L{peers.nursery_process}: what many tests import. Nothing of it claims anything, such as ports.
PRELOADED = (
    "boto3",
    "dpkt",
    "hypothesis",
    "kafka",
    "pcapsvc.app",
    "pcapsvc.sources.http.source",
    "pcapsvc.testing",
    "pcapsvc.web.api",
    "treq",
    "twisted.conch.ssh.keys",
    "twisted.web.client",
)
#: Each process has a reactor of its own.
NOT_PRELOADED = "twisted.internet.reactor"


class EventReporter(Reporter):
    """
    trial's reporter, that also writes every outcome to a stream, as JSON.

    @cvar timeouts: of the tests that have one, by their ids, in seconds. trial ends only asynchronous tests;
        those of others say how patient whoever waits has to be.
    """

    events: TextIO
    timeouts: Mapping[str, float]
    _module: str | None = None

    def startTest(self, test: Any) -> None:
        """A test starts."""
        module = test.id().rsplit(".", 2)[0]
        if module != self._module:
            # Some tests count descriptors: what those of another module left must not be closed meanwhile.
            self._module = module
            gc.collect()
        super().startTest(test)
        self._tell("start", test, timeout=self.timeouts.get(test.id()))

    def stopTest(self, test: Any) -> None:
        """A test has ended."""
        super().stopTest(test)
        self._tell("stop", test, cpu=processor_seconds())

    def addSuccess(self, test: Any) -> None:
        """It passed."""
        super().addSuccess(test)
        self._tell("passed", test)

    def addFailure(self, test: Any, fail: Any) -> None:
        """An assertion failed."""
        super().addFailure(test, fail)
        self._tell("failed", test, _traceback(fail))

    def addError(self, test: Any, error: Any) -> None:
        """It raised, or left something behind, or logged an error."""
        super().addError(test, error)
        self._tell("failed", test, _traceback(error))

    def addSkip(self, test: Any, reason: Any) -> None:
        """It was skipped."""
        super().addSkip(test, reason)
        self._tell("skipped", test, str(reason))

    def addExpectedFailure(self, test: Any, error: Any, todo: Any = None) -> None:
        """It failed as expected."""
        super().addExpectedFailure(test, error, todo)
        self._tell("passed", test)

    def addUnexpectedSuccess(self, test: Any, todo: Any = None) -> None:
        """It passed, which was not expected."""
        super().addUnexpectedSuccess(test, todo)
        self._tell("failed", test, "unexpected success")

    def _tell(self, event: str, test: Any, text: str = "", **more: Any) -> None:
        _write({"event": event, "test": test.id(), "text": text, **more})


def _write(event: dict[str, Any]) -> None:
    EventReporter.events.write(json.dumps({**event, "time": time.monotonic()}) + "\n")
    EventReporter.events.flush()


def _traceback(error: Any) -> str:
    failure = error if isinstance(error, Failure) else Failure(error[1], error[0], error[2])
    # Hypothesis adds the example that fails as a note (PEP 678), which Twisted leaves out.
    return "\n".join([failure.getTraceback(), *getattr(failure.value, "__notes__", ())])


def tests_of(suite: unittest.TestSuite) -> Iterator[Any]:
    """All tests of a suite, in its order."""
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from tests_of(test)
        else:
            yield test


def is_marked(test: Any) -> bool:
    """Whether a test needs the machine to itself: its method, its class or its module is marked."""
    method = getattr(test, test.id().rpartition(".")[2], None)
    module = sys.modules.get(type(test).__module__)
    return any(getattr(one, MARK, False) for one in (method, test, module))


def main() -> int:
    """Run the tests. The exit status."""
    parser = argparse.ArgumentParser(prog="tests.runner.worker")
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--directory", required=True)
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("names", nargs="+")
    arguments = parser.parse_args()
    # Where it hangs or crashes, it leaves the stacks of its threads.
    faulthandler.enable(file=sys.stderr, all_threads=True)
    os.set_inheritable(arguments.events, False)
    EventReporter.events = os.fdopen(arguments.events, "w")
    loaded = TestLoader().loadByNames(arguments.names, True)
    suite = TestSuite(test for test in tests_of(loaded) if is_marked(test) is arguments.alone)
    EventReporter.timeouts = {test.id(): test.timeout for test in tests_of(suite) if hasattr(test, "timeout")}
    # What is loaded stays, and would be looked at again in each full collection.
    gc.collect()
    gc.freeze()
    _write({"event": "ready", "cpu": processor_seconds()})
    result: Any = TrialRunner(EventReporter, workingDirectory=arguments.directory).run(suite)
    _write({"event": "end"})
    return int(not result.wasSuccessful())
