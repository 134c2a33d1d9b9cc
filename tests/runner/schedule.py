"""Which modules run, in which order, and which of them share a process."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

DURATIONS = Path(__file__).with_name("durations.json")

MARK = "needs_machine_alone"
# What a module without a recorded duration is assumed to take, in seconds, by the package it is in.
_ASSUMED_SECONDS = {"tests.integration": 20.0, "tests.faults": 20.0}
_ASSUMED_OTHERWISE = 1.0
# How long the modules in one process take together, in seconds. A process needs half a second to start;
# the shorter they are, the closer together all processes end.
_LONGEST_BATCH_SECONDS = 12.0
_SHORTEST_BATCH_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """
    Some tests that run in one process.

    @ivar names: what to load: modules, classes or methods, with dots.
    @ivar alone: run only the tests that need the machine to themselves; otherwise, only the others.
    @ivar seconds: how long it is expected to take.
    """

    names: tuple[str, ...]
    alone: bool
    seconds: float

    @property
    def key(self) -> str:
        """The name under which the duration of a job of one module is recorded."""
        return duration_key(self.names[0], alone=self.alone)


def duration_key(module: str, *, alone: bool) -> str:
    """The name under which a duration is recorded."""
    return f"{module} alone" if alone else module


def load_durations() -> dict[str, float]:
    """The recorded durations, in seconds, by L{duration_key}."""
    if not DURATIONS.exists():
        return {}
    recorded: dict[str, float] = json.loads(DURATIONS.read_text())
    return recorded


def save_durations(measured: Mapping[str, float]) -> None:
    """Record durations of a second or more, and keep those of modules that did not run."""
    known = load_durations() | {key: round(seconds, 1) for key, seconds in measured.items()}
    long = {key: seconds for key, seconds in known.items() if seconds >= _ASSUMED_OTHERWISE}
    DURATIONS.write_text(json.dumps(long, indent=1, sort_keys=True) + "\n")


def find_modules(root: Path, targets: Iterable[str]) -> Iterator[str]:
    """
    What to load for each target: the test modules of a package, or the target itself if it is a module,
    a class or a method.

    @param root: the directory that the C{tests} package is in.
    @param targets: names with dots, or paths.
    """
    for target in targets:
        name = target.removesuffix("/").removesuffix(".py").replace("/", ".")
        directory = root.joinpath(*name.split("."))
        if not directory.is_dir():
            yield name
            continue
        for path in sorted(directory.rglob("test_*.py")):
            yield ".".join(path.relative_to(root).with_suffix("").parts)


def marks(source: str) -> tuple[bool, bool]:
    """
    Whether a module has tests that need the machine alone, and whether it has others.

    @param source: the module's source: it is not imported.
    """
    tree = ast.parse(source)
    if _has_mark(tree.body):
        return True, False
    alone = others = False
    for one in tree.body:
        if not isinstance(one, ast.ClassDef):
            continue
        marked = {name for name in _marked(one.body) if name}
        tests = {
            node.name for node in one.body if isinstance(node, _FUNCTIONS) and node.name.startswith("test")
        }
        whole = _has_mark(one.body)
        alone |= whole or bool(marked)
        others |= not whole and bool(tests - marked)
    # A class that inherits all its tests has none in the source.
    return alone, others or not alone


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def _has_mark(body: Sequence[ast.stmt]) -> bool:
    return "" in _marked(body)


def _marked(body: Sequence[ast.stmt]) -> Iterator[str]:
    """What is marked in a body: the names of methods, and the empty string for the body itself."""
    for statement in body:
        if isinstance(statement, ast.Assign):
            for target in statement.targets:
                if isinstance(target, ast.Name) and target.id == MARK:
                    yield ""
                if isinstance(target, ast.Attribute) and target.attr == MARK:
                    assert isinstance(target.value, ast.Name)
                    yield target.value.id


def plan(root: Path, names: Iterable[str], durations: Mapping[str, float], processes: int) -> list[Job]:
    """
    The jobs for some modules, in the order in which they start: the longest first, and then, together, the
    short ones; and those that need the machine alone last.

    @param processes: how many run at the same time.
    """
    together: list[Job] = []
    alone: list[Job] = []
    for name in dict.fromkeys(names):
        has_alone, has_others = _marks_of(root, name)
        if has_others:
            together.append(Job(names=(name,), alone=False, seconds=_expected(name, False, durations)))
        if has_alone:
            alone.append(Job(names=(name,), alone=True, seconds=_expected(name, True, durations)))
    total = sum(job.seconds for job in together)
    # Small enough that all processes end at about the same time.
    limit = max(_SHORTEST_BATCH_SECONDS, min(_LONGEST_BATCH_SECONDS, total / processes / 4))
    return [*_batches(together, limit), *_batches(alone, _LONGEST_BATCH_SECONDS)]


def _marks_of(root: Path, name: str) -> tuple[bool, bool]:
    path = root.joinpath(*name.split(".")).with_suffix(".py")
    if path.is_file():
        return marks(path.read_text())
    # A class or a method: which of both, its process finds out.
    module = name.rpartition(".")[0]
    if not module:
        return False, True
    return _marks_of(root, module)[0], True


def _expected(name: str, alone: bool, durations: Mapping[str, float]) -> float:
    package = ".".join(name.split(".")[:2])
    return durations.get(duration_key(name, alone=alone), _ASSUMED_SECONDS.get(package, _ASSUMED_OTHERWISE))


def _batches(jobs: Iterable[Job], limit: float) -> Iterator[Job]:
    """The jobs by their duration, the longest first; several in one while they stay within a limit."""
    names: list[str] = []
    seconds = 0.0
    alone = False
    for job in sorted(jobs, key=lambda one: (-one.seconds, one.names)):
        if names and seconds + job.seconds > limit:
            yield Job(names=tuple(names), alone=alone, seconds=seconds)
            names, seconds = [], 0.0
        names += job.names
        seconds += job.seconds
        alone = job.alone
    if names:
        yield Job(names=tuple(names), alone=alone, seconds=seconds)
