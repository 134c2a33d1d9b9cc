"""C{-w FILE}: saves the file of each capture, and merges them with C{--merge}."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pcapsvc.client.api import ApiProblem, capture_path
from pcapsvc.client.connections import NodeNames
from pcapsvc.client.decompressing import decompressed
from pcapsvc.client.merging import merge
from pcapsvc.client.status import ClientError, NoAnswer, UsageProblem
from pcapsvc.client.tally import Row, Tally

_AT_ONCE = 4
_ATTEMPTS = 3
_PAUSE_SECONDS = 1.0
_UNSAFE = re.compile(r"[^A-Za-z0-9._:@-]")


@dataclass
class _Fetched:
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
        self._turns = threading.BoundedSemaphore(_AT_ONCE)
        self._found: dict[str, _Fetched] = {}
        self._taken: set[Path] = set()
        self._lock = threading.Lock()
        self._is_kept = False
        directory = Path(".") if target == "-" else Path(target).parent
        if merged and target == "-":
            directory = Path(tempfile.gettempdir())
        if not directory.is_dir() or not os.access(directory, os.W_OK):
            raise UsageProblem(f"{directory} is not a directory that can be written to")
        self._parts = Path(tempfile.mkdtemp(prefix=".pcapctl-", dir=directory))

    def update(self, tally: Tally) -> None:
        """Begin with those that have stopped, and note those that are saved."""
        for row in tally.rows:
            capture_id = row.capture_id
            has_file = row.file is not None or (row.state == "done" and not row.has_stopped)
            if capture_id is not None and has_file and capture_id not in self._found:
                fetched = self._found[capture_id] = _Fetched(row=row)
                arguments = (fetched, row.node, row.interface or "", row.api, capture_id)
                threading.Thread(target=self._run, args=arguments, daemon=True).start()
        for fetched in self._found.values():
            if fetched.path is not None:
                fetched.row.fetched = self._target if self._merged else str(fetched.path)
            fetched.row.fetch_problem = fetched.problem

    def is_busy(self) -> bool:
        """Whether some are still to be saved."""
        return any(fetched.path is None and fetched.problem is None for fetched in self._found.values())

    def finish(self) -> None:
        """
        Merge them, if they are to be one file.

        @raise ClientError: if they can't be merged. Then each of them is kept.
        """
        if self._merged:
            self._merge([fetched.path for fetched in self._found.values() if fetched.path is not None])

    def close(self) -> None:
        """Remove what isn't whole."""
        if not self._is_kept:
            shutil.rmtree(self._parts, ignore_errors=True)

    def _run(self, fetched: _Fetched, node: str, interface: str, url: str | None, capture_id: str) -> None:
        """In a thread: save one."""
        with self._turns:
            try:
                fetched.path = self._fetch(node, interface, url, capture_id)
            except (ClientError, OSError) as problem:
                fetched.problem = str(problem)

    def _fetch(self, node: str, interface: str, url: str | None, capture_id: str) -> Path:
        part = self._parts / f"{_safe(node)}-{_safe(interface)}-{_safe(capture_id)}.pcap"
        for attempt in range(_ATTEMPTS):
            try:
                self._download(node, url, capture_id, part)
                break
            except NoAnswer:
                part.unlink(missing_ok=True)
                if attempt == _ATTEMPTS - 1:
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
                for data in decompressed(body, body.headers.get("Content-Type", "")):
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
        return path

    def _merge(self, parts: Sequence[Path]) -> None:
        if not parts:
            return
        try:
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
                    whole.replace(self._target)
        except ClientError as problem:
            (self._parts / "merged").unlink(missing_ok=True)
            self._is_kept = True
            raise ClientError(f"{problem}. The captures are in {self._parts}") from None


def _safe(name: str) -> str:
    """A part of a file's name, without a separator, and not hidden."""
    return re.sub(r"\A\.", "_", _UNSAFE.sub("_", name))
