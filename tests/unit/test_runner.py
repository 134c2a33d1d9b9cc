"""The runner of the tests: what runs where, and what is reported of it."""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from peers.nursery import Nursery
from tests.runner import schedule
from tests.runner.machine import most_processes, pressure, processor_seconds, processors
from tests.runner.pool import Pool, next_job
from tests.runner.schedule import Duration, Job, find_modules, marks, plan

_ROOT = Path(__file__).resolve().parents[2]

_ONE = "class A(Base):\n    def test_one(self): pass\n"
_MARKED = "class B(Base):\n    needs_machine_alone = True\n    def test_two(self): pass\n"


class MachineTests(SynchronousTestCase):
    """How much of the machine the tests may use."""

    def setUp(self) -> None:
        """A process without control groups."""
        self.path = Path(self.mktemp())
        self.path.mkdir()
        self.write(cgroup="")

    def write(self, **files: str) -> None:
        """Write files, in whose names two underscores are a slash and C{_dot_} is a dot."""
        for name, content in files.items():
            path = self.path / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    def test_all(self) -> None:
        """It may use the processors that it may run on."""
        self.assertEqual(processors(self.path, self.path), len(os.sched_getaffinity(0)))

    def test_quota(self) -> None:
        """Or fewer, by the lowest quota of its groups, whichever version they have."""
        self.write(cgroup="0::/a/b\n", cpu_dot_max="max 100000\n", a__cpu_dot_max="50000 100000\n")
        self.assertEqual(processors(self.path, self.path), 0.5)
        self.write(a__b__cpu_dot_max="25000 100000\n")
        self.assertEqual(processors(self.path, self.path), 0.25)
        self.write(
            cgroup="9:name=systemd:/x\n4:cpu,cpuacct:/c\n",
            cpu__cpu_dot_cfs_quota_us="-1\n",
            cpu__cpu_dot_cfs_period_us="100000\n",
            cpu__c__cpu_dot_cfs_quota_us="75000\n",
            cpu__c__cpu_dot_cfs_period_us="100000\n",
        )
        self.assertEqual(processors(self.path, self.path), 0.75)

    def test_memory(self) -> None:
        """There are no more processes than the memory has room for, of the host and of a control group."""
        self.write(meminfo="MemTotal: 9999999 kB\nMemAvailable: 4194304 kB\n")
        for count, most in ((0.1, 1), (1.5, 8), (2, 8), (1, 7)):
            self.assertEqual(most_processes(count, self.path, self.path / "meminfo"), most)
        group = self.path.absolute() / "group"
        self.write(cgroup="0::/\n", mountinfo=f"30 23 0:26 / {group} rw - cgroup2 cgroup rw\n")
        self.write(group__memory_dot_max="2147483648\n", group__memory_dot_current="104857600\n")
        self.assertEqual(most_processes(2, self.path, self.path / "meminfo"), 3)

    def test_pressure(self) -> None:
        """The kernel says how busy the processors are, or does not."""
        self.assertEqual(pressure(self.path / "cpu"), 0)
        self.write(
            cpu="some avg10=12.34 avg60=9.00 avg300=8.00 total=4845354855\n"
            "full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
        )
        self.assertEqual(pressure(self.path / "cpu"), 12.34)

    def test_processor_seconds(self) -> None:
        """What a process takes counts while it runs, and after its end."""
        spin = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ninput()"
        before = processor_seconds()
        words = [sys.executable, "-c", spin]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdout.readline()
            running = processor_seconds()
            process.stdin.write(b"\n")
        self.assertGreater(running - before, 0.4)
        # The kernel rounds each of them.
        self.assertGreater(processor_seconds(), running - 0.1)


class ScheduleTests(SynchronousTestCase):
    """Which modules run, in which order, and together with which."""

    def setUp(self) -> None:
        """A project."""
        self.root = Path(self.mktemp())

    def write(self, **modules: str) -> None:
        """Write modules of C{tests.unit}."""
        package = self.root / "tests" / "unit"
        package.mkdir(parents=True)
        for name, source in modules.items():
            (package / f"{name}.py").write_text(source)

    def jobs(self, durations: dict[str, float]) -> list[tuple[tuple[str, ...], bool]]:
        """The names in each job for all modules, without their package, and whether it runs alone."""
        names = find_modules(self.root, ["tests"])
        known = {f"tests.unit.{name}": Duration(seconds, seconds) for name, seconds in durations.items()}
        return [
            (tuple(name.rpartition(".")[2] for name in job.names), job.alone)
            for job in plan(self.root, names, known, 2)
        ]

    def test_targets(self) -> None:
        """A target is a package, a directory, a file, a module, a class or a method."""
        self.write(test_a=_ONE, test_b=_ONE, helper="")
        both, one = ["tests.unit.test_a", "tests.unit.test_b"], ["tests.unit.test_a"]
        for target, names in {
            "tests": both,
            "tests.unit": both,
            "tests/unit/": both,
            "tests/unit/test_a.py": one,
            "tests.unit.test_a": one,
            "tests.unit.test_a.A.test_one": ["tests.unit.test_a.A.test_one"],
        }.items():
            self.assertEqual(list(find_modules(self.root, [target])), names, target)

    def test_longest_first(self) -> None:
        """The longest start first, each in a process of its own; short ones share one."""
        self.write(test_a=_ONE, test_b=_ONE, test_c=_ONE, test_d=_ONE)
        jobs = self.jobs({"test_a": 0.5, "test_b": 40, "test_c": 0.25, "test_d": 60})
        self.assertEqual(jobs, [(("test_d",), False), (("test_b",), False), (("test_a", "test_c"), False)])

    def test_alone_last(self) -> None:
        """What needs the machine alone comes last, apart from the other tests of its module."""
        self.write(test_a=_ONE + _MARKED, test_b=_ONE, test_c=f"needs_machine_alone = True\n{_ONE}")
        jobs = self.jobs({"test_a": 30, "test_b": 20, "test_a alone": 60, "test_c alone": 5})
        self.assertEqual(
            jobs, [(("test_a",), False), (("test_b",), False), (("test_a",), True), (("test_c",), True)]
        )

    def test_twice(self) -> None:
        """A module that is named twice runs once."""
        self.write(test_a=_ONE)
        jobs = plan(self.root, find_modules(self.root, ["tests", "tests.unit.test_a"]), {}, 2)
        self.assertEqual([job.names for job in jobs], [("tests.unit.test_a",)])

    def test_class_of_a_marked_module(self) -> None:
        """Whether a class that was asked for runs alone is found out by the process that loads it."""
        self.write(test_a=_ONE + _MARKED)
        jobs = plan(self.root, ["tests.unit.test_a.B"], {}, 2)
        self.assertEqual([job.alone for job in jobs], [False, True])

    def test_busy(self) -> None:
        """How busy a job keeps the processors is the average of its modules, by their durations."""
        self.write(test_a=_ONE, test_b=_ONE, test_c=_ONE)
        durations = {"a": Duration(40, 10), "b": Duration(2, 1), "c": Duration(0.5, 0.25)}
        known = {f"tests.unit.test_{name}": duration for name, duration in durations.items()}
        jobs = plan(self.root, find_modules(self.root, ["tests"]), known, 2)
        self.assertEqual([(len(job.names), job.busy) for job in jobs], [(1, 0.25), (2, 0.5)])

    def test_shared_peers(self) -> None:
        """Modules that share a peer share a process, however long they take; their other tests run alone."""
        kafka, s3 = 'shared_peer = "Kafka"\n', 'shared_peer = "S3"\n'
        self.write(test_a=kafka + _ONE, test_b=s3 + _ONE, test_c=_ONE, test_d=kafka + _ONE + _MARKED)
        jobs = self.jobs({"test_a": 60, "test_b": 20, "test_c": 50, "test_d": 40, "test_d alone": 5})
        self.assertEqual(
            jobs,
            [(("test_a", "test_d"), False), (("test_c",), False), (("test_b",), False), (("test_d",), True)],
        )

    def test_recorded(self) -> None:
        """Durations are recorded, beside those of modules that did not run."""
        self.patch(schedule, "DURATIONS", Path(self.mktemp()))
        schedule.save_durations({"a": Duration(12.34, 5.67), "b": Duration(3, 1)})
        schedule.save_durations({"b": Duration(4, 2), "c": Duration(0.9, 0.9)})
        self.assertEqual(schedule.load_durations(), {"a": (12.3, 5.7), "b": (4, 2), "c": (0.9, 0.9)})

    def test_as_many_as_the_processors_take(self) -> None:
        """The next job is the first one that fits: no more processes, and no more work, than there may be."""
        busy, idle = (
            Job(names=(name,), alone=False, seconds=1, busy=of) for name, of in (("a", 1), ("b", 0.1))
        )
        for waiting, running, following in (
            ([busy, idle], [], busy),
            ([busy, idle], [busy], busy),
            ([busy, idle], [busy, busy], idle),
            ([busy], [busy, busy], None),
            ([busy, idle], [idle] * 5, busy),
            ([busy, idle], [idle] * 6, None),
            ([], [busy], None),
        ):
            self.assertIs(next_job(waiting, running, 6, 2), following, (waiting, running))
        # One that is more than the processors take must run, too.
        self.assertIs(next_job([busy], [], 6, 0.5), busy)

    def test_under_pressure(self) -> None:
        """If the processors are busier than expected, there are no more than a few."""
        idle = Job(names=("a",), alone=False, seconds=1, busy=0.1)
        for running, percent, following in ((3, 99.0, idle), (4, 99.0, None), (4, 50.0, idle)):
            self.assertIs(next_job([idle], [idle] * running, 9, 2, percent), following, (running, percent))

    def test_marks(self) -> None:
        """A module's marks are read without importing it."""
        for source, found in {
            "raise Exception": (False, True),
            _ONE: (False, True),
            _MARKED: (True, False),
            _ONE + _MARKED: (True, True),
            f"needs_machine_alone = True\n{_ONE}": (True, False),
            f"{_ONE}    test_one.needs_machine_alone = True\n": (True, False),
            f"{_ONE}    def test_two(self): pass\n    test_two.needs_machine_alone = True\n": (True, True),
        }.items():
            self.assertEqual(marks(source), found, source)


@functools.cache
def _workers() -> Nursery:
    """What all processes are forked from; it ends with this process."""
    return Nursery("tests.runner.worker")


class PoolTests(SynchronousTestCase):
    """Processes run tests, whatever the tests do to them."""

    def setUp(self) -> None:
        """A package of samples, that the processes find."""
        self.package = Path(self.mktemp()).absolute() / "samples"
        self.package.mkdir(parents=True)
        (self.package / "__init__.py").touch()
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = str(self.package.parent)
        if before is None:
            self.addCleanup(os.environ.pop, "PYTHONPATH")
        else:
            self.addCleanup(os.environ.__setitem__, "PYTHONPATH", before)
        self.lines: list[str] = []

    def write(self, name: str, body: str, before: str = "") -> str:
        """Write a module with one class. Its name."""
        (self.package / f"{name}.py").write_text(
            "import gc, os, signal, subprocess, threading, time\n"
            "from unittest import SkipTest\n"
            "from twisted.trial.unittest import SynchronousTestCase\n"
            f"{before}\n"
            f"class Tests(SynchronousTestCase):\n{textwrap.indent(textwrap.dedent(body), '    ')}\n"
        )
        return f"samples.{name}"

    def pool(self, *jobs: Job, processes: int = 2, **bounds: float) -> Pool:
        """Run jobs. The pool that ran them."""
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        pool = Pool(_ROOT, directory, nursery=_workers(), say=self.lines.append, **bounds)
        asyncio.run(pool.run(jobs, processes, processes))
        return pool

    def job(self, *names: str, alone: bool = False) -> Job:
        """A job of some modules."""
        return Job(names=names, alone=alone, seconds=1)

    def test_outcomes(self) -> None:
        """Tests pass, fail, raise, and are skipped; each failure is reported in full."""
        name = self.write(
            "test_outcomes",
            """
            def test_error(self):
                error = ValueError("quite wrong")
                error.add_note("with a note")
                raise error
            def test_failure(self): self.assertEqual(1, 2)
            def test_pass(self): pass
            def test_skip(self): raise SkipTest("no such thing")
            def test_todo(self): self.fail("later")
            test_todo.todo = "later"
            """,
        )
        tally = self.pool(self.job(name)).tally
        self.assertEqual(tally.line, "2 passed, 2 failed, 1 skipped")
        details = "\n".join(tally.details())
        self.assertIn(f"FAILED {name}.Tests.test_error", details)
        self.assertIn("ValueError: quite wrong", details)
        self.assertIn("with a note", details)
        self.assertIn("skipped 1: no such thing", details)
        self.assertIn(f"{name}: 2 passed, 2 failed, 1 skipped", self.lines[-1])
        self.assertEqual(list(tally.durations), [name])

    def test_garbage(self) -> None:
        """What tests of one module leave behind is not closed during those of the next one."""
        first = self.write(
            "test_a",
            """
            def test_leaves(self):
                class Left:
                    def __init__(self): self.itself, self.file = self, os.dup(0)
                    def __del__(self): os.close(self.file)
                Left()
            """,
        )
        second = self.write(
            "test_b",
            """
            def test_counts(self):
                before = os.listdir("/proc/self/fd")
                gc.collect()
                self.assertEqual(os.listdir("/proc/self/fd"), before)
            """,
        )
        pool = self.pool(self.job(first, second))
        self.assertEqual(pool.tally.line, "2 passed, 0 failed, 0 skipped", pool.tally.failures)

    def test_no_such_module(self) -> None:
        """A module that can't be imported is a failure."""
        pool = self.pool(self.job("samples.test_missing"))
        self.assertEqual(pool.tally.line, "0 passed, 1 failed, 0 skipped")

    def test_hangs(self) -> None:
        """
        A process that hangs is ended, with all that it started. It is reported which test hangs, and where.
        The modules that were to follow run in another process.
        """
        first = self.write(
            "test_a",
            """
            def test_hangs(self):
                self.child = subprocess.Popen(["sleep", "1000"])
                with open(os.environ["PYTHONPATH"] + "/pid", "w") as file:
                    file.write(str(self.child.pid))
                time.sleep(1000)
            """,
        )
        second = self.write("test_b", "def test_pass(self): pass")
        # On a busy machine, seconds may pass before a test starts.
        pool = self.pool(self.job(first, second), patience_seconds=10)
        self.assertEqual(pool.tally.line, "1 passed, 1 failed, 0 skipped", pool.tally.failures)
        ((test, text),) = pool.tally.failures
        self.assertEqual(test, f"{first}.Tests.test_hangs")
        self.assertIn("hangs: nothing happened for 10 s", text)
        self.assertIn("in test_hangs", text)
        child = Path("/proc", (self.package.parent / "pid").read_text(), "stat")
        deadline = time.monotonic() + 60
        # Whoever inherited it may leave it as a zombie.
        while child.exists() and child.read_text().rpartition(")")[2].split()[0] != "Z":
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)

    def test_long_timeout(self) -> None:
        """A test may take as long as its time-out says, if that is longer."""
        name = self.write(
            "test_a",
            """
            timeout = 60

            def test_long(self):
                time.sleep(12)
            """,
        )
        # Likewise.
        pool = self.pool(self.job(name), patience_seconds=10)
        self.assertEqual(pool.tally.line, "1 passed, 0 failed, 0 skipped", pool.tally.failures)

    def test_dies(self) -> None:
        """A process that dies is a failure of the test that it died in. What was to follow runs."""
        first = self.write(
            "test_a",
            """
            def test_a(self): pass
            def test_dies(self): os._exit(3)
            """,
        )
        second = self.write("test_b", "def test_pass(self): pass")
        pool = self.pool(self.job(first, second))
        self.assertEqual(pool.tally.line, "2 passed, 1 failed, 0 skipped")
        ((test, text),) = pool.tally.failures
        self.assertEqual(test, f"{first}.Tests.test_dies")
        self.assertIn("exited with status 3 before its tests were done", text)

    def test_does_not_exit(self) -> None:
        """A thread that a test left behind, and that keeps the process alive, is a failure."""
        name = self.write(
            "test_a", "def test_thread(self): threading.Thread(target=time.sleep, args=(1000,)).start()"
        )
        pool = self.pool(self.job(name), exit_seconds=1)
        self.assertEqual(pool.tally.line, "1 passed, 1 failed, 0 skipped")
        self.assertIn("did not exit within 1 s", pool.tally.failures[0][1])

    def test_alone(self) -> None:
        """
        Tests that need the machine alone run when no other runs, and only they: marked in their module,
        their class, or themselves.
        """
        log = self.package.parent / "log"
        body = f"""
            def note(self, word):
                with open({str(log)!r}, "a") as file: file.write(word)
            def test_a(self):
                self.note("(")
                time.sleep(0.3)
                self.note(")")
            """
        mark = "            {}needs_machine_alone = True\n"
        marked = [
            self.write("test_1", f"{body}\n{mark.format('')}"),
            self.write("test_2", f"{body}\n{mark.format('test_a.')}"),
            self.write("test_3", body, "needs_machine_alone = True"),
        ]
        other = self.write("test_4", body)
        jobs = [self.job(name, alone=True) for name in marked]
        pool = self.pool(*jobs, self.job(other, *marked))
        self.assertEqual(pool.tally.line, "4 passed, 0 failed, 0 skipped")
        self.assertEqual(log.read_text(), "()" * 4)


class CommandTests(SynchronousTestCase):
    """C{python -m tests.runner}, and its seed."""

    def run_it(self, *names: str, seed: str = "", **variables: str) -> tuple[int, list[str]]:
        """Run it, with more variables in its environment. Its exit status, and the lines that it printed."""
        environment = {**os.environ, "PCAPSVC_SEED": seed, **variables}
        done = subprocess.run(
            [sys.executable, "-m", "tests.runner", *names],
            cwd=_ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        return done.returncode, done.stdout.splitlines()

    def test_passes(self) -> None:
        """
        The last line sums up, and the first has the seed. Modules are compiled once, not by each of hundreds
        of processes, whatever the environment says.
        """
        package = Path(self.mktemp()).absolute() / "samples"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "test_a.py").write_text(
            "import sys\nfrom twisted.trial.unittest import SynchronousTestCase\n"
            "class Tests(SynchronousTestCase):\n"
            "    def test_a(self): self.assertFalse(sys.dont_write_bytecode)\n"
        )
        variables = {"PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}
        names = ("tests.core.test_line_limit", "samples.test_a")
        status, lines = self.run_it(*names, seed="17", **variables)
        self.assertEqual(status, 0, lines)
        self.assertEqual(lines[0], "PCAPSVC_SEED=17")
        self.assertRegex(lines[-1], "^[1-9][0-9]* passed, 0 failed, 0 skipped$")
        for name in names:
            self.assertTrue([line for line in lines if f" {name}: " in line], lines)

    def test_fails(self) -> None:
        """A failure is in the exit status, and the seed that repeats it is shown with it."""
        status, lines = self.run_it("tests.unit.no_such_module", seed="17")
        self.assertEqual(status, 1)
        self.assertEqual(lines[-1], "0 passed, 1 failed, 0 skipped")
        (logs,) = (line for line in lines if line.startswith("logs: "))
        self.assertIn("PCAPSVC_SEED=17", logs)
        directory = _ROOT / logs.split()[1].rstrip(";")
        subprocess.run(["rm", "-r", str(directory)], check=True)

    def choices(self, seed: str) -> str:
        """What a process chose at random, by our helper and by Hypothesis, and the seed that it printed."""
        script = """if True:
            from hypothesis import given, settings, strategies
            from tests.chance import chance, seeded
            print(chance("a").random(), chance("b").random())
            @seeded
            @settings(database=None, max_examples=5)
            @given(strategies.integers())
            def show(number): print(number)
            show()
            """
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=_ROOT,
            env={**os.environ, "PCAPSVC_SEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=100,
        )
        return done.stdout

    def test_seed(self) -> None:
        """The seed that a run printed makes its random choices again; without one they are others."""
        first, second = self.choices(""), self.choices("")
        self.assertNotEqual(first, second)
        seed = first.splitlines()[0].removeprefix("PCAPSVC_SEED=")
        self.assertEqual(self.choices(seed), first)
