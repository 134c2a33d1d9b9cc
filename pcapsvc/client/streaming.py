"""
C{-w -}: the packets of one capture, as they arrive.

A reader that stalls costs nothing: what it has not read stays at the node, which disconnects whoever reads
nothing for 30 s. The rest is requested once it reads on, as long as the node has it.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable

from pcapsvc.client.api import ApiProblem, Body, NodeApi, capture_path
from pcapsvc.client.at_once import start_thread
from pcapsvc.client.capture_file import read_capture
from pcapsvc.client.connections import NodeNames
from pcapsvc.client.status import ClientError, NoAnswer
from pcapsvc.client.tally import Row, Tally
from pcapsvc.client.waiting import UNFINISHED
from pcapsvc.core.artifact import PCAP_MEDIA_TYPE

_CHUNK_BYTES = 64 * 1024
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-[0-9]+/([0-9]+|\*)")
_POLL_SECONDS = 0.1
# How often a node that doesn't answer is tried again, a second apart.
_ATTEMPTS = 10


class Streamer:
    """
    Copies the first capture that starts. See L{pcapsvc.client.waiting.IFiles}.

    @param descriptor: what it is written to.
    @param note: called with what is to be said, from any thread.
    """

    def __init__(self, names: NodeNames, descriptor: int, note: Callable[[str], None]) -> None:
        self._names = names
        self._descriptor = descriptor
        self._note = note
        self._row: Row | None = None
        self._thread: threading.Thread | None = None
        self._others: set[str] = set()
        self._api: NodeApi | None = None

    def update(self, tally: Tally) -> None:
        """Begin as soon as a capture has started."""
        for row in tally.rows:
            if row.capture_id is None or row.state in ("accepted", "failed"):
                continue
            if self._row is None:
                self._row = row
                self._thread = start_thread(self._run, row, row.capture_id)
            elif row.capture_id != self._row.capture_id and row.capture_id not in self._others:
                self._others.add(row.capture_id)
                self._note(f"only one capture is streamed, and not {row.capture_id} on {row.node}")

    def is_busy(self) -> bool:
        """Whether it is still being copied."""
        return self._thread is not None and self._thread.is_alive()

    def finish(self) -> None:
        """What is still being copied won't be."""
        if self._row is not None and self.is_busy():
            self._row.fetch_problem = UNFINISHED

    def close(self) -> None:
        """Nothing is left behind."""

    def stop(self) -> None:
        """End the capture, if it runs. It delivers what it has."""
        if self._row is not None and self._api is not None:
            try:
                self._api.call("DELETE", capture_path(self._row.capture_id or ""))
            except ClientError:
                pass  # it has ended

    def _run(self, row: Row, capture_id: str) -> None:
        try:
            self._api = self._names.api(row.node, row.api)
            copy_packets(self._api, capture_id, self._descriptor)
            row.fetched = "standard output"
        except BrokenPipeError:
            # As tcpdump ends when its reader does.
            row.fetched = "standard output"
            self.stop()
        except OSError as problem:
            # Such as a full disk: the packets go nowhere.
            row.fetch_problem = problem.strerror or str(problem)
            self.stop()
        except ClientError as problem:
            row.fetch_problem = str(problem)
        except BaseException:
            row.fetch_problem = "internal error"
            raise


def copy_packets(api: NodeApi, capture_id: str, descriptor: int) -> None:
    """
    Copy the packets of a capture as they arrive, until it has ended.

    @param descriptor: what they are written to.

    @raise ClientError: if not all of them can be copied.
    @raise BrokenPipeError: if the reader is gone.
    """
    path, done, failures = capture_path(capture_id, "/pcap"), 0, 0
    try:
        body = api.open("GET", path, query={"follow": "1"}, forever=True)
        if _is_pcap(body):
            _pass_on(body, 0, descriptor)
        else:
            _pass_on_file(body, descriptor)
        return
    except ApiProblem as problem:
        raise ClientError(str(problem)) from None
    except _CutOff as cut:
        done = cut.done
    while True:
        try:
            body = api.open("GET", path, headers={"Range": f"bytes={done}-"})
            if not _is_pcap(body):
                body.close()
                raise ClientError("the reader was too slow: the node has the packets in another file only")
            part = _CONTENT_RANGE.fullmatch(body.headers.get("Content-Range", ""))
            if part is None or int(part[1]) != done:
                body.close()
                raise ClientError("the node did not send the rest of the packets, but something else")
            done, failures = _pass_on(body, done, descriptor), 0
            if part[2] == str(done):
                return
        except _CutOff as cut:
            done = cut.done
        except ApiProblem as problem:
            whole = _size_of_ended(api, capture_id)
            if problem.code != 416:
                missed = "" if whole is None else f"; the last {whole - done:,} bytes are missing"
                raise ClientError(f"the reader was too slow: {problem}{missed}") from None
            if whole == done:
                return
        except NoAnswer:
            failures += 1
            if failures == _ATTEMPTS:
                raise
            time.sleep(1.0)
        time.sleep(_POLL_SECONDS)


def _size_of_ended(api: NodeApi, capture_id: str) -> int | None:
    """How large the file of a capture is, in bytes; L{None} if it isn't known, or the capture still runs."""
    try:
        state = api.call("GET", capture_path(capture_id))
        is_running, size = state.get("state") == "capturing", state.get("bytes")
    except (ClientError, AttributeError):
        return None
    return None if is_running or not isinstance(size, int) else size


def _is_pcap(body: Body) -> bool:
    """Whether it is the recording itself, and not what was delivered of it."""
    return body.headers.get("Content-Type", PCAP_MEDIA_TYPE) == PCAP_MEDIA_TYPE


def _pass_on_file(body: Body, descriptor: int) -> None:
    """Write a file that the node has no longer in memory, decompressed."""
    try:
        for data in read_capture(body):
            _write(data, descriptor)
    finally:
        body.close()


def _write(data: bytes, descriptor: int) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _pass_on(body: Body, done: int, descriptor: int) -> int:
    """
    Write what arrives.

    @param done: how much was written before, in bytes.

    @return: how much is written now.

    @raise _CutOff: if the connection was lost.
    """
    # The beginning is checked.
    pieces = iter(lambda: body.read(_CHUNK_BYTES), b"") if done else read_capture(body)
    try:
        for data in pieces:
            _write(data, descriptor)
            done += len(data)
    except NoAnswer:
        raise _CutOff(done) from None
    finally:
        body.close()
    return done


class _CutOff(Exception):
    """The connection was lost after so many bytes."""

    def __init__(self, done: int) -> None:
        super().__init__()
        self.done = done
