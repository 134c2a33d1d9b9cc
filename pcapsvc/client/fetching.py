"""C{-w FILE}: saves the file of each capture, and merges them with C{--merge}."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import msgspec

from pcapsvc.client.api import ApiProblem, capture_path
from pcapsvc.client.at_once import start_thread
from pcapsvc.client.capture_file import read_capture
from pcapsvc.client.connections import NodeNames
from pcapsvc.client.merging import merge
from pcapsvc.client.status import ClientError, NoAnswer, UsageProblem
from pcapsvc.client.tally import Row, Tally
from pcapsvc.client.waiting import UNFINISHED

_AT_ONCE = 4
_ATTEMPTS = 3
_PAUSE_SECONDS = 1.0
_UNSAFE = re.compile(r"[^A-Za-z0-9._:@-]")


class _Fetched(msgspec.Struct):
    """
    One capture.

    @ivar path: where it is, once it is saved.
    @ivar problem: why it can't be.
    """

    row: Row
    path: Path | None = None
    problem: str | None = None


class Fetcher:
    """
    Saves the files of captures once they have stopped. See L{pcapsvc.client.waiting.IFiles}.

    @param target: where to; in the name of the file, C{%n} is the node's name, and C{%i} that of the
        interface.
    @param merged: whether all of them become one file. Then C{-} is standard output.

    @raise UsageProblem: if nothing can be saved there.
    """

    def __init__(self, names: NodeNames, target: str, *, merged: bool) -> None:
        self._names = names
        self._target = target
        self._merged = merged
        self._turns: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._threads = 0
        self._found: dict[tuple[str, str], _Fetched] = {}
        self._taken: set[Path] = set()
        self._lock = threading.Lock()
        self._is_kept = False
        if merged and target == "-":
            directory = Path(tempfile.gettempdir())
        else:
            if not Path(target).name or target.endswith("/"):
                raise UsageProblem(f"{target or 'an empty name'} is not the name of a file")
            directory = _place(Path(target)).parent
        try:
            self._parts = Path(tempfile.mkdtemp(prefix=".pcapctl-", dir=directory))
        except OSError:
            raise UsageProblem(f"{directory} is not a directory that can be written to") from None

    def update(self, tally: Tally) -> None:
        """Begin with those that have stopped, and note those that are saved."""
        for row in tally.rows:
            capture_id = row.capture_id
            has_file = row.file is not None or (row.state == "done" and not row.has_stopped)
            if capture_id is not None and has_file and (row.node, capture_id) not in self._found:
                fetched = self._found[row.node, capture_id] = _Fetched(row=row)
                arguments = (fetched, row.node, row.interface or "", row.api, capture_id)
                self._turns.put(partial(self._run, *arguments))
                self._begin()
        for fetched in self._found.values():
            if fetched.path is not None and self._merged:
                fetched.row.is_to_merge = True
            elif fetched.path is not None:
                fetched.row.fetched = str(fetched.path)
            fetched.row.fetch_problem = fetched.problem

    def is_busy(self) -> bool:
        """Whether some are still to be saved."""
        return any(fetched.path is None and fetched.problem is None for fetched in self._found.values())

    def finish(self) -> None:
        """
        Merge them, if they are to be one file.

        @raise ClientError: if they can't be merged. Then each of them is kept.
        """
        for fetched in self._found.values():
            if fetched.path is None and fetched.problem is None:
                fetched.row.fetch_problem = UNFINISHED
        if not self._merged:
            return
        parts = {path: fetched.row for fetched in self._found.values() if (path := fetched.path)}
        try:
            self._merge(list(parts))
        except BrokenPipeError:
            raise
        except (ClientError, OSError) as problem:
            (self._parts / "merged").unlink(missing_ok=True)
            self._is_kept = True
            for path, row in parts.items():
                _saved(row, str(path))
            raise ClientError(f"{_reason(problem)}. The captures are in {self._parts}") from None
        for row in parts.values():
            _saved(row, "standard output" if self._target == "-" else self._target)

    def close(self) -> None:
        """Remove what isn't whole."""
        if not self._is_kept:
            shutil.rmtree(self._parts, ignore_errors=True)

    def _begin(self) -> None:
        """Start another thread, if there are too few. They save whatever has its turn, from now on."""
        if self._threads < _AT_ONCE:
            try:
                start_thread(self._work)
            except ClientError:
                if not self._threads:
                    raise
                return
            self._threads += 1

    def _work(self) -> None:
        try:
            while True:
                self._turns.get()()
        except BaseException:
            # The others still have their turns.
            start_thread(self._work)
            raise

    def _run(self, fetched: _Fetched, node: str, interface: str, url: str | None, capture_id: str) -> None:
        """In a thread: save one."""
        try:
            fetched.path = self._fetch(node, interface, url, capture_id)
        except (ClientError, OSError) as problem:
            fetched.problem = getattr(problem, "strerror", None) or str(problem)
        except BaseException:
            # It would be waited for.
            fetched.problem = "internal error"
            raise

    def _fetch(self, node: str, interface: str, url: str | None, capture_id: str) -> Path:
        part = self._parts / f"{_safe(node)}-{_safe(interface)}-{_safe(capture_id)}.pcap"
        for attempt in range(_ATTEMPTS):
            try:
                self._download(node, url, capture_id, part)
                break
            except (ClientError, OSError) as problem:
                # Perhaps the disk is full of it.
                part.unlink(missing_ok=True)
                if attempt == _ATTEMPTS - 1 or not isinstance(problem, NoAnswer):
                    raise
                time.sleep(_PAUSE_SECONDS)
        if self._merged:
            return part
        path = self._path(node, interface, capture_id)
        part.replace(path)
        return path

    def _download(self, node: str, url: str | None, capture_id: str, part: Path) -> None:
        api = self._names.api(node, url)
        try:
            body = api.open("GET", capture_path(capture_id, "/pcap"))
        except ApiProblem as problem:
            raise ClientError(str(problem)) from None
        try:
            with part.open("wb") as file:
                for data in read_capture(body):
                    file.write(data)
        finally:
            body.close()

    def _path(self, node: str, interface: str, capture_id: str) -> Path:
        """Where a capture is saved: a name that no other one of this request has."""
        given = Path(self._target)
        words = {"%n": _safe(node), "%i": _safe(interface), "%%": "%"}
        path = given.with_name(re.sub("%[ni%]", lambda found: words[found[0]], given.name))
        with self._lock:
            if path in self._taken:
                path = path.with_name(f"{path.stem}-{_safe(capture_id)}{path.suffix}")
            self._taken.add(path)
        return _place(path)

    def _merge(self, parts: Sequence[Path]) -> None:
        if not parts:
            return
        with contextlib.ExitStack() as stack:
            inputs: list[tuple[str, BinaryIO]] = [
                (part.name, stack.enter_context(part.open("rb"))) for part in sorted(parts)
            ]
            if self._target == "-":
                merge(inputs, sys.stdout.buffer)
                sys.stdout.buffer.flush()
            else:
                whole = self._parts / "merged"
                with whole.open("wb") as output:
                    merge(inputs, output)
                whole.replace(_place(Path(self._target)))


def _place(path: Path) -> Path:
    """
    Where a file is moved to: through a link, to what it points to.

    @raise UsageProblem: if nothing can be there; or if something is that is not a file: a device or a pipe
        would be gone.
    """
    try:
        is_other, place = path.exists() and not path.is_file(), os.path.realpath(path)
    except OSError as problem:
        raise UsageProblem(f"{path}: {problem.strerror}") from None
    if is_other:
        raise UsageProblem(f"{path} is not a regular file, and is not replaced")
    return Path(place)


def _saved(row: Row, place: str) -> None:
    row.fetched, row.is_to_merge = place, False


def _reason(problem: Exception) -> str:
    words = getattr(problem, "strerror", None)
    return f"can't be merged: {words}" if words else str(problem)


def _safe(name: str) -> str:
    """A part of a file's name, without a separator, and not hidden."""
    return re.sub(r"\A(\.|\Z)", "_", _UNSAFE.sub("_", name))
