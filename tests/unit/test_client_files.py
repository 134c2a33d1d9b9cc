"""Where captures are saved, and how they are streamed to a slow reader."""

from __future__ import annotations

import gzip
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import zstandard
from twisted.trial import unittest

from pcapsvc.client.address import HttpAddress
from pcapsvc.client.api import ApiProblem
from pcapsvc.client.fetching import Fetcher
from pcapsvc.client.status import NoAnswer, UsageProblem
from pcapsvc.client.streaming import Streamer
from tests.unit import client_case as case
from tests.unit.client_case import tally
from tests.unit.test_client_merging import pcap

_PATIENCE_SECONDS = 20.0


class MemoryBody:
    """The body of an answer."""

    def __init__(self, *parts: bytes, lost: bool = False, headers: Mapping[str, str] | None = None) -> None:
        self._parts = list(parts)
        self._lost = lost
        self.headers = dict(headers or {})

    def read(self, most: int | None = None) -> bytes:
        """The next part."""
        if self._parts:
            return self._parts.pop(0)
        if self._lost:
            raise NoAnswer("lost")
        return b""

    def close(self) -> None:
        """Nothing."""


class MemoryNode:
    """
    A node, its API, and the names of nodes: it answers by a script.

    @ivar asked: the path and the range of each request.
    """

    def __init__(self, *answers: MemoryBody | Exception) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[str, str | None]] = []

    def api(self, node: str, url: str | None) -> MemoryNode:
        """The API of any node."""
        return self

    def open(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **_: Any
    ) -> MemoryBody:
        """The next answer."""
        self.asked.append((path, (headers or {}).get("Range")))
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def call(self, method: str, path: str) -> dict[str, Any]:
        """The capture is ended; or its state, if it runs until the script is at its end."""
        if method == "DELETE":
            self.asked.append((f"{method} {path}", None))
        return {"state": "capturing" if self._answers else "done", "bytes": 124}


def finished(look: Callable[[], bool]) -> None:
    """Wait for another thread."""
    until = time.monotonic() + _PATIENCE_SECONDS
    while not look():
        if time.monotonic() > until:
            raise AssertionError("timed out")
        threading.Event().wait(0.01)


class FetcherTests(unittest.SynchronousTestCase):
    """C{-w FILE}."""

    def setUp(self) -> None:
        """A directory."""
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()

    def fetch(self, name: str, node: MemoryNode, *events: dict[str, Any], merged: bool = False) -> Any:
        """Fetch the captures of some events. Returns their rows."""
        counted = tally(*events)
        fetcher: Any = Fetcher(node, str(self.directory / name), merged=merged)  # type: ignore[arg-type]
        self.addCleanup(fetcher.close)
        fetcher.update(counted)
        finished(lambda: not fetcher.is_busy())
        fetcher.update(counted)
        fetcher.finish()
        fetcher.close()
        return counted.rows

    def names(self) -> list[str]:
        """What is in the directory."""
        return sorted(os.listdir(self.directory))

    def test_names(self) -> None:
        """The name has those of the node and of the interface; a second one of the same name has its id."""
        node = MemoryNode(MemoryBody(b"1"), MemoryBody(b"2"))
        events = [*case.whole("web-1", "a"), *case.whole("../x/.y", "b")]
        rows = self.fetch("%%-%n-%i.pcap", node, *events)
        self.assertEqual(self.names(), ["%-_._x_.y-eth0.pcap", "%-web-1-eth0.pcap"])
        self.assertEqual({row.fetched for row in rows}, {str(self.directory / name) for name in self.names()})
        self.assertTrue(all(row.is_delivered for row in rows))

    def test_compressed(self) -> None:
        """A file that a node has in compressed form only is decompressed, whatever it is called here."""
        data = pcap([(1_000, b"abc" * 100_000, 300_000)] * 5, snap=262144)
        for media_type, whole in (
            ("application/gzip", gzip.compress(data)),
            ("application/zstd", zstandard.compress(data)),
        ):
            parts = [whole[:100], whole[100:]]
            node = MemoryNode(MemoryBody(*parts, headers={"Content-Type": media_type}))
            [row] = self.fetch("a.pcap", node, *case.whole("web-1", "a"))
            self.assertTrue(row.is_delivered)
            self.assertEqual((self.directory / "a.pcap").read_bytes(), data)

    def test_damaged(self) -> None:
        """One that is cut off, or damaged, is not fetched, and nothing is left of it."""
        data = pcap([(1_000, b"abc" * 100, 300)])
        for media_type, whole in (
            ("application/gzip", gzip.compress(data)),
            ("application/zstd", zstandard.ZstdCompressor(write_checksum=True).compress(data)),
        ):
            for wrong in (whole[:-3], whole[:20] + b"?" + whole[21:], b"", data):
                node = MemoryNode(MemoryBody(wrong, headers={"Content-Type": media_type}))
                [row] = self.fetch("a.pcap", node, *case.whole("web-1", "a"))
                self.assertIn("the file is damaged", str(row.fetch_problem))
                self.assertEqual(self.names(), [])

    def test_same_name(self) -> None:
        """No capture overwrites another one of the same request."""
        node = MemoryNode(MemoryBody(b"1"), MemoryBody(b"2"))
        self.fetch("x.pcap", node, *case.whole("web-1", "a"), *case.whole("web-2", "b"))
        self.assertEqual(len(self.names()), 2)
        contents = {(self.directory / name).read_bytes() for name in self.names()}
        self.assertEqual(contents, {b"1", b"2"})

    def test_lost(self) -> None:
        """A download that is cut off is tried again, from its beginning."""
        node = MemoryNode(MemoryBody(b"12", lost=True), MemoryBody(b"123"))
        self.fetch("x.pcap", node, *case.whole("web-1", "a"))
        self.assertEqual((self.directory / "x.pcap").read_bytes(), b"123")

    def test_gone(self) -> None:
        """What the node no longer has is not saved, and not delivered."""
        problem = ApiProblem(HttpAddress(host="web-1"), 410, {"detail": "no longer"})
        (row,) = self.fetch("x.pcap", MemoryNode(problem), *case.whole("web-1", "a"))
        self.assertEqual((self.names(), row.is_delivered), ([], False))
        self.assertIn("no longer", row.fetch_problem)

    def test_merged(self) -> None:
        """All captures become one file; parts of it are not left behind."""
        first, second = (1_000, b"a", 60), (2_000, b"b", 60)
        node = MemoryNode(MemoryBody(pcap([second])), MemoryBody(pcap([first])))
        events = [*case.whole("web-1", "a"), *case.whole("web-2", "b")]
        self.fetch("all.pcap", node, *events, merged=True)
        self.assertEqual(self.names(), ["all.pcap"])
        self.assertEqual((self.directory / "all.pcap").read_bytes(), pcap([first, second]))

    def test_no_directory(self) -> None:
        """A directory that isn't there is wrong usage, before anything is sent."""
        node: Any = MemoryNode()
        self.assertRaises(UsageProblem, Fetcher, node, str(self.directory / "no" / "x"), merged=False)


class StreamerTests(unittest.SynchronousTestCase):
    """C{-w -}."""

    def stream(self, node: Any, *events: dict[str, Any], is_read: bool = True) -> tuple[bytes, Any]:
        """Stream the capture of these events. What the reader gets, and the row."""
        reader, writer = os.pipe()
        notes: list[str] = []
        counted = tally(*events)
        if not is_read:
            os.close(reader)
        streamer = Streamer(node, writer, notes.append)
        streamer.update(counted)
        finished(lambda: not streamer.is_busy())
        os.close(writer)
        data = b""
        if is_read:
            with os.fdopen(reader, "rb") as file:
                data = file.read()
        self.notes = notes
        return data, counted.rows[0]

    def test_whole(self) -> None:
        """What arrives is passed on, and is complete if the answer is."""
        data, row = self.stream(MemoryNode(MemoryBody(b"12", b"34")), case.started("web-1", "a"))
        self.assertEqual((data, row.fetched), (b"1234", "standard output"))

    def test_resumed(self) -> None:
        """If the node has disconnected a reader that stalled, the rest is requested; nothing is lost."""
        node = MemoryNode(
            MemoryBody(b"12", lost=True),
            MemoryBody(b"34", headers={"Content-Range": "bytes 2-3/*"}),
            ApiProblem(HttpAddress(host="web-1"), 416, {}),
            MemoryBody(b"5", lost=True, headers={"Content-Range": "bytes 4-5/6"}),
            NoAnswer("gone"),
            MemoryBody(b"6", headers={"Content-Range": "bytes 5-5/6"}),
        )
        self.patch(time, "sleep", lambda seconds: None)
        data, row = self.stream(node, case.started("web-1", "a"))
        self.assertEqual((data, row.fetch_problem), (b"123456", None))
        ranges = [asked for _, asked in node.asked]
        self.assertEqual(ranges, [None, "bytes=2-", "bytes=4-", "bytes=4-", "bytes=5-", "bytes=5-"])

    def test_missed(self) -> None:
        """A reader that was too slow learns what it has missed."""
        node = MemoryNode(MemoryBody(b"12", lost=True), ApiProblem(HttpAddress(host="web-1"), 410, {}))
        self.patch(time, "sleep", lambda seconds: None)
        data, row = self.stream(node, case.started("web-1", "a"))
        self.assertEqual(data, b"12")
        self.assertIn("; the last 122 bytes are missing", row.fetch_problem)

    def test_other_files(self) -> None:
        """Of a capture that is over, the delivered file is passed on; but no rest of another file."""
        headers = {"Content-Type": "application/gzip"}
        node = MemoryNode(MemoryBody(gzip.compress(b"12345"), headers=headers))
        self.assertEqual(self.stream(node, case.started("web-1", "a"))[0], b"12345")
        node = MemoryNode(MemoryBody(b"12", lost=True), MemoryBody(b"xx", headers=headers))
        data, row = self.stream(node, case.started("web-1", "a"))
        self.assertEqual(data, b"12")
        self.assertIn("in another file only", row.fetch_problem)

    def test_reader_gone(self) -> None:
        """Without a reader, the capture is ended."""
        node = MemoryNode(MemoryBody(b"12", b"34"))
        self.stream(node, case.started("web-1", "a"), is_read=False)
        self.assertEqual(node.asked[-1], ("DELETE /captures/a", None))

    def test_one_only(self) -> None:
        """Only one capture is streamed; the others are named."""
        events = [case.started("web-1", "a"), case.started("web-2", "b")]
        data, _ = self.stream(MemoryNode(MemoryBody(b"12")), *events)
        self.assertEqual((data, len(self.notes)), (b"12", 1))
        self.assertIn("b on web-2", self.notes[0])
