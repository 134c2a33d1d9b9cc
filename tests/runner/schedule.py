"""Which modules run, in which order, and which of them share a process."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

DURATIONS = Path(__file__).with_name("durations.json")

MARK = "needs_machine_alone"
# What a module is assigned to this name says which peer its tests share: one that takes seconds to start, and
# lasts as long as the process. Modules that share a peer run in one process.
SHARED_PEER = "shared_peer"


class Duration(NamedTuple):
    """
    How long a module takes.

    @ivar seconds: from its start to its end.
    @ivar busy_seconds: how much time of processors it takes meanwhile, itself and what it starts.
    """

    seconds: float
    busy_seconds: float


# What a module without a recorded duration is assumed to take, by the package it is in: the average of those
# that were recorded.
_ASSUMED = {
    "tests.contracts": Duration(15.0, 4.0),
    "tests.faults": Duration(50.0, 8.0),
    "tests.integration": Duration(40.0, 7.0),
}
_ASSUMED_OTHERWISE = Duration(1.0, 1.0)
# How long the modules in one process take together, in seconds. A process is forked, which takes a tenth of
# a second; the shorter they are, the closer together all processes end.
_LONGEST_BATCH_SECONDS = 12.0
_SHORTEST_BATCH_SECONDS = 3.0
# The same for those that need the machine alone: they run one after the other in any case, and while a
# process ends and the next one starts, nothing else runs. What they share, such as a browser, starts once.
_LONGEST_BATCH_ALONE_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """
    Some tests that run in one process.

    @ivar names: what to load: modules, classes or methods, with dots.
    @ivar alone: run only the tests that need the machine to themselves; otherwise, only the others.
    @ivar seconds: how long it is expected to take.
    @ivar busy: how many processors it is expected to occupy; the rest of the time it waits.
    """

    names: tuple[str, ...]
    alone: bool
    seconds: float
    busy: float = 1.0

    @property
    def key(self) -> str:
        """The name under which the duration of a job of one module is recorded."""
        return duration_key(self.names[0], alone=self.alone)


def duration_key(module: str, *, alone: bool) -> str:
    """The name under which a duration is recorded."""
    return f"{module} alone" if alone else module


def load_durations() -> dict[str, Duration]:
    """The recorded durations, by L{duration_key}."""
    if not DURATIONS.exists():
        return {}
    return {key: Duration(*recorded) for key, recorded in json.loads(DURATIONS.read_text()).items()}


def save_durations(measured: Mapping[str, Duration]) -> None:
    """Record how long modules took, and keep what is known of those that did not run."""
    known = load_durations() | measured
    lines = [
        f"{json.dumps(key)}: {json.dumps([round(number, 1) for number in known[key]])}"
        for key in sorted(known)
    ]
    DURATIONS.write_text("{\n" + ",\n".join(f" {line}" for line in lines) + "\n}\n")


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


def shared_peer(source: str) -> str | None:
    """Which peer a module shares with others; L{None} if it shares none."""
    for statement in ast.parse(source).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(peer))):
                if name == SHARED_PEER:
                    return peer
    return None


def plan(root: Path, names: Iterable[str], durations: Mapping[str, Duration], processors: float) -> list[Job]:
    """
    The jobs for some modules, in the order in which they start: the longest first, and then, together, the
    short ones; and those that need the machine alone last.

    @param processors: how many there are.
    """
    together: list[Job] = []
    alone: list[Job] = []
    sharing: dict[str, list[Job]] = {}
    for name in dict.fromkeys(names):
        has_alone, has_others = _marks_of(root, name)
        if has_others:
            peer = _shared_peer_of(root, name)
            group = together if peer is None else sharing.setdefault(peer, [])
            group.append(_job(name, False, durations))
        if has_alone:
            alone.append(_job(name, True, durations))
    together += [_together(jobs) for jobs in sharing.values()]
    total = sum(job.seconds * job.busy for job in together)
    # Small enough that all processes end at about the same time.
    limit = max(_SHORTEST_BATCH_SECONDS, min(_LONGEST_BATCH_SECONDS, total / processors / 8))
    return [*_batches(together, limit), *_batches(alone, _LONGEST_BATCH_ALONE_SECONDS)]


def _path_of(root: Path, name: str) -> Path:
    return root.joinpath(*name.split(".")).with_suffix(".py")


def _shared_peer_of(root: Path, name: str) -> str | None:
    path = _path_of(root, name)
    return shared_peer(path.read_text()) if path.is_file() else None


def _marks_of(root: Path, name: str) -> tuple[bool, bool]:
    path = _path_of(root, name)
    if path.is_file():
        return marks(path.read_text())
    # A class or a method: which of both, its process finds out.
    module = name.rpartition(".")[0]
    if not module:
        return False, True
    return _marks_of(root, module)[0], True


def _job(name: str, alone: bool, durations: Mapping[str, Duration]) -> Job:
    package = ".".join(name.split(".")[:2])
    assumed = _ASSUMED.get(package, _ASSUMED_OTHERWISE)
    seconds, busy_seconds = durations.get(duration_key(name, alone=alone), assumed)
    return Job(
        names=(name,), alone=alone, seconds=seconds, busy=busy_seconds / max(seconds, busy_seconds, 0.1)
    )


def _batches(jobs: Iterable[Job], limit: float) -> Iterator[Job]:
    """The jobs by their duration, the longest first; several in one while they stay within a limit."""
    batch: list[Job] = []
    for job in sorted(jobs, key=lambda one: (-one.seconds, one.names)):
        if batch and sum(one.seconds for one in batch) + job.seconds > limit:
            yield _together(batch)
            batch = []
        batch.append(job)
    if batch:
        yield _together(batch)


def _together(jobs: Sequence[Job]) -> Job:
    seconds = sum(job.seconds for job in jobs)
    return Job(
        names=tuple(name for job in jobs for name in job.names),
        alone=jobs[0].alone,
        seconds=seconds,
        busy=sum(job.seconds * job.busy for job in jobs) / max(seconds, 0.1),
    )
