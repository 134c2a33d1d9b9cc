"""A process that is killed at any instant leaves a readable spool, and nothing of it is lost."""

from __future__ import annotations

import signal
import time
from collections import Counter
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from peers.nursery import ForkedProcess, Nursery
from tests.chance import SEED, VARIABLE, chance

_ROUNDS = 20
_FEWEST_CAPTURES = 50
_MOST_ROUNDS = 300
_ROOT = Path(__file__).resolve().parents[2]


class CrashTests(SynchronousTestCase):
    """SIGKILL, again and again, on one spool."""

    def setUp(self) -> None:
        """A spool, and an account of what happened."""
        self.directory = Path(self.mktemp()).absolute()
        self.spool = self.directory / "spool"
        self.spool.mkdir(parents=True)
        self.account = self.directory / "account"
        self.account.touch()
        self.chance = chance(self.id())
        self.nursery = Nursery("tests.faults.spooling_process")
        self.addCleanup(self.nursery.close)

    def lines(self) -> list[str]:
        """What happened; a line that was being written is left out."""
        return self.account.read_text().split("\n")[:-1]

    def spooled(self) -> int:
        """How many captures were spooled."""
        return len({line for line in self.lines() if line.startswith("spooled ")})

    def run_until_killed(self, round: int) -> None:
        """Run the process, and kill it some time after it is ready, and has done something or nothing."""
        before = self.lines().count("ready")
        process = self.process(str(round))
        try:
            self.wait_for(lambda: self.lines().count("ready") > before, process)
            # By what it has done, and not only by time: on a busy machine it would get little done.
            enough = len(self.lines()) + self.chance.randrange(20)
            self.wait_for(lambda: len(self.lines()) >= enough, process)
            time.sleep(self.chance.uniform(0, 0.05))
        finally:
            process.send_signal(signal.SIGKILL)
            self.assertEqual(process.wait(60), -signal.SIGKILL, self.errors())

    def process(self, *arguments: str) -> ForkedProcess:
        """The process."""
        with (self.directory / "errors").open("ab") as errors:
            return ForkedProcess(
                self.nursery.path,
                ["spooling_process", str(self.spool), str(self.account), *arguments],
                output=errors.fileno(),
                directory=_ROOT,
            )

    def errors(self) -> str:
        """What the processes complained of."""
        return f"{VARIABLE}={SEED}: {(self.directory / 'errors').read_text()}"

    def wait_for(self, condition: object, process: ForkedProcess) -> None:
        """Wait until a condition holds."""
        assert callable(condition)
        deadline = time.monotonic() + 60
        while not condition():
            if process.poll() is not None or time.monotonic() > deadline:
                self.fail(self.errors())
            time.sleep(0.005)

    def test_killed_at_any_instant(self) -> None:
        """
        Whatever was said to be spooled arrives; what arrives is whole; and it arrives a
        second time only where the process was killed between the arrival and its mark.
        """
        rounds = 0
        while rounds < _ROUNDS or self.spooled() <= _FEWEST_CAPTURES:
            self.run_until_killed(rounds)
            rounds += 1
            self.assertLess(rounds, _MOST_ROUNDS, f"{self.spooled()} captures")
        last = self.process("last", "drain")
        self.assertEqual(last.wait(60), 0, self.errors())
        lines = self.lines()
        found = {
            kind: Counter(line.split()[1] for line in lines if line.startswith(f"{kind} "))
            for kind in ("spooled", "arrived", "broken", "lost")
        }
        self.assertEqual((found["broken"], found["lost"]), (Counter(), Counter()), self.errors())
        self.assertEqual(set(found["spooled"]) - set(found["arrived"]), set(), self.errors())
        self.assert_repeated_by_kills_alone(lines)
        left = {path.name for path in self.spool.iterdir()}
        self.assertLessEqual(left, {"lock", "broken"})
        for path in (self.spool / "broken").glob("*/*"):
            self.assertTrue(path.parent.name.startswith("new-"), path)
        # One each, that was being written when its process was killed, three at once.
        self.assertLessEqual(len(list((self.spool / "broken").glob("*"))), 3 * rounds)

    def assert_repeated_by_kills_alone(self, lines: list[str]) -> None:
        """No process delivers a capture twice; the next one repeats at most the last one."""
        arrived: dict[str, int] = {}
        last: dict[int, str] = {}
        process = 0
        for line in lines:
            kind, _, capture_id = line.partition(" ")
            if kind == "ready":
                process += 1
            if kind != "arrived":
                continue
            before = arrived.get(capture_id)
            if before is not None:
                self.assertGreater(process, before, f"{capture_id} came twice from one process")
                self.assertEqual(last[before], capture_id, f"{capture_id} was marked, and came again")
            arrived[capture_id] = process
            last[process] = capture_id
