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

from pcapsvc.client import words
from pcapsvc.client.address import HttpAddress
from pcapsvc.client.api import ApiProblem
from pcapsvc.client.fetching import Fetcher
from pcapsvc.client.status import ClientError, NoAnswer, UsageProblem
from pcapsvc.client.streaming import Streamer
from tests.unit import client_case as case
from tests.unit.client_case import tally
from tests.unit.test_client_merging import pcap, pcapng

_PATIENCE_SECONDS = 180.0

# A file without packets, of 24 bytes: what else is in the body is passed on as it is.
_BEGIN = pcap([])

# What nodes may answer with that is not a capture: the headers, and the body.
_WRONG: list[tuple[dict[str, str], bytes]] = [
    ({"Content-Type": "text/html"}, b"<html>login</html>"),
    ({"Content-Type": "application/vnd.tcpdump.pcap"}, b'{"captures": []}'),
    ({"Content-Type": "application/vnd.tcpdump.pcap"}, _BEGIN[:3]),
    ({"Content-Type": "application/vnd.tcpdump.pcap"}, gzip.compress(_BEGIN)),
    ({"Content-Type": "application/gzip"}, gzip.compress(b"<html>login</html>")),
    ({"Content-Type": "application/zstd"}, zstandard.compress(b"<html>login</html>")),
    ({}, b""),
]


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
        node = MemoryNode(MemoryBody(_BEGIN + b"1"), MemoryBody(_BEGIN + b"2"))
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

    def test_no_capture(self) -> None:
        """What is neither a pcap nor a pcapng file is not saved, whatever it is said to be."""
        for headers, body in _WRONG:
            node = MemoryNode(MemoryBody(body, headers=headers))
            [row] = self.fetch("a.pcap", node, *case.whole("web-1", "a"))
            self.assertIn("is neither a pcap nor a pcapng file", str(row.fetch_problem))
            self.assertIn(headers.get("Content-Type", "a capture"), str(row.fetch_problem))
            self.assertFalse(row.is_delivered)
            self.assertEqual(self.names(), [])

    def test_every_format(self) -> None:
        """Every format that nodes have is saved: also those of a host with the other byte order."""
        packets = [(1_000, b"abc", 3)]
        for order in "<>":
            for whole in (
                pcap(packets, order=order),
                pcap([], order=order, nano=True),
                pcapng(packets, order=order),
            ):
                self.fetch("a.pcap", MemoryNode(MemoryBody(whole)), *case.whole("web-1", "a"))
                self.assertEqual((self.directory / "a.pcap").read_bytes(), whole)

    def test_same_name(self) -> None:
        """No capture overwrites another one of the same request."""
        node = MemoryNode(MemoryBody(_BEGIN + b"1"), MemoryBody(_BEGIN + b"2"))
        self.fetch("x.pcap", node, *case.whole("web-1", "a"), *case.whole("web-2", "b"))
        self.assertEqual(len(self.names()), 2)
        contents = {(self.directory / name).read_bytes() for name in self.names()}
        self.assertEqual(contents, {_BEGIN + b"1", _BEGIN + b"2"})

    def test_lost(self) -> None:
        """A download that is cut off is tried again, from its beginning."""
        node = MemoryNode(MemoryBody(_BEGIN, lost=True), MemoryBody(_BEGIN + b"3"))
        self.fetch("x.pcap", node, *case.whole("web-1", "a"))
        self.assertEqual((self.directory / "x.pcap").read_bytes(), _BEGIN + b"3")

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

    def test_merged_location(self) -> None:
        """The merged file is named once it is there; if it can't be made, the files of the captures are."""
        events = [*case.whole("web-1", "a"), *case.whole("web-2", "b")]
        events = [event for event in events if event["type"] != "pcapsvc.delivery.delivered"]
        for name, links in (("all.pcap", (1, 1)), ("other.pcap", (1, 113)), ("taken", (1, 1))):
            counted = tally(*events)
            node: Any = MemoryNode(*(MemoryBody(pcap([(1_000, b"a", 60)], link=link)) for link in links))
            fetcher = Fetcher(node, str(self.directory / name), merged=True)
            self.addCleanup(fetcher.close)
            if name == "taken":
                (self.directory / name).mkdir()
            fetcher.update(counted)
            finished(lambda fetcher=fetcher: not fetcher.is_busy())
            fetcher.update(counted)
            self.assertEqual([row.fetched for row in counted.rows], [None, None])
            self.assertEqual({words.where_briefly(row) for row in counted.rows}, {"fetched"})
            self.assertEqual({words.state(row, 0.0) for row in counted.rows}, {"fetched"})
            if name == "all.pcap":
                fetcher.finish()
                self.assertEqual({row.fetched for row in counted.rows}, {str(self.directory / name)})
                self.assertTrue(all(row.is_delivered for row in counted.rows))
                continue
            error = self.assertRaises(ClientError, fetcher.finish)
            fetcher.close()
            files = [Path(row.fetched or "") for row in counted.rows]
            self.assertTrue(all(file.is_file() for file in files), files)
            self.assertEqual({str(error).endswith(f" are in {file.parent}") for file in files}, {True})

    def test_no_file(self) -> None:
        """What is there and is not a file stays what it is, which is wrong usage before anything is sent."""
        fifo, link, loop = (self.directory / name for name in ("fifo", "link", "loop"))
        os.mkfifo(fifo)
        link.symlink_to(fifo)
        loop.symlink_to(loop)
        node: Any = MemoryNode()
        for target in (fifo, link, self.directory, f"{self.directory}/x/", "", "/", "..", "x" * 256):
            for merged in (False, True):
                self.assertRaises(UsageProblem, Fetcher, node, str(target), merged=merged)
        node = MemoryNode(MemoryBody(_BEGIN))
        [row] = self.fetch("%n", node, *case.whole("fifo", "a"))
        self.assertIn("is not a regular file", row.fetch_problem)
        self.assertEqual(self.names(), ["fifo", "link", "loop"])
        self.assertTrue(fifo.is_fifo() and link.is_symlink())

    def test_current_directory(self) -> None:
        """Nothing can be saved if the current directory is gone."""
        gone = self.directory / "gone"
        gone.mkdir()
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(gone)
        gone.rmdir()
        node: Any = MemoryNode()
        self.assertRaises(UsageProblem, Fetcher, node, "x", merged=False)

    def test_link(self) -> None:
        """A link stays one: what it points to is replaced."""
        (self.directory / "other").mkdir()
        link = self.directory / "link"
        link.symlink_to("other/file")
        for merged in (False, True):
            node = MemoryNode(MemoryBody(pcap([(1_000, b"a", 60)])))
            self.fetch("link", node, *case.whole("web-1", "a"), merged=merged)
            self.assertTrue(link.is_symlink())
            self.assertEqual((self.directory / "other" / "file").read_bytes(), pcap([(1_000, b"a", 60)]))
            (self.directory / "other" / "file").unlink()
        self.assertEqual(os.listdir(self.directory / "other"), [])

    def test_unnamed(self) -> None:
        """A node without a name is one, too."""
        events = [{**event, "source": "/pcapsvc/nodes/"} for event in case.whole("web-1", "a")]
        self.fetch("%n", MemoryNode(MemoryBody(_BEGIN)), *events)
        self.assertEqual(self.names(), ["_"])

    def test_many(self) -> None:
        """Of many captures, a few are saved at once, also after errors that nobody expected."""
        self.patch(threading, "excepthook", lambda _: None)
        inside: set[int] = set()
        counts: list[int] = []

        class Node(MemoryNode):
            def open(self, *args: Any, **more: Any) -> Any:
                inside.add(threading.get_ident())
                # The others may begin meanwhile.
                threading.Event().wait(0.01)
                counts.append(len(inside))
                inside.remove(threading.get_ident())
                raise ZeroDivisionError

        captures = [each for number in range(50) for each in case.whole("web-1", f"c{number}")]
        rows = self.fetch("x", Node(), *captures)
        self.assertEqual({row.fetch_problem for row in rows}, {"internal error"})
        self.assertEqual((len(counts), max(counts) <= 4), (50, True), counts)

    def test_fault(self) -> None:
        """After an error that nobody expected, nothing waits for the file."""
        self.patch(threading, "excepthook", lambda _: None)
        [row] = self.fetch("x", MemoryNode(ZeroDivisionError()), *case.whole("web-1", "a"))
        self.assertEqual((row.fetch_problem, row.is_delivered, self.names()), ("internal error", False, []))

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
        node = MemoryNode(MemoryBody(_BEGIN[:2], _BEGIN[2:], b"34"))
        data, row = self.stream(node, case.started("web-1", "a"))
        self.assertEqual((data, row.fetched), (_BEGIN + b"34", "standard output"))

    def test_full(self) -> None:
        """If what it is written to is full, the capture ends, as when the reader is gone."""
        node, counted = MemoryNode(MemoryBody(_BEGIN)), tally(case.started("web-1", "a"))
        with open("/dev/full", "wb", buffering=0) as full:
            streamer = Streamer(node, full.fileno(), print)  # type: ignore[arg-type]
            streamer.update(counted)
            finished(lambda: not streamer.is_busy())
        self.assertEqual(counted.rows[0].fetch_problem, "No space left on device")
        self.assertEqual(node.asked[-1], ("DELETE /captures/a", None))

    def test_resumed(self) -> None:
        """If the node has disconnected a reader that stalled, the rest is requested; nothing is lost."""
        node = MemoryNode(
            MemoryBody(_BEGIN[:2], lost=True),
            MemoryBody(_BEGIN, lost=True, headers={"Content-Range": "bytes 0-23/*"}),
            MemoryBody(b"34", headers={"Content-Range": "bytes 24-25/*"}),
            ApiProblem(HttpAddress(host="web-1"), 416, {}),
            MemoryBody(b"5", lost=True, headers={"Content-Range": "bytes 26-26/28"}),
            NoAnswer("gone"),
            MemoryBody(b"6", headers={"Content-Range": "bytes 27-27/28"}),
        )
        self.patch(time, "sleep", lambda seconds: None)
        data, row = self.stream(node, case.started("web-1", "a"))
        self.assertEqual((data, row.fetch_problem), (_BEGIN + b"3456", None))
        ranges = [asked for _, asked in node.asked]
        self.assertEqual(ranges[:3], [None, "bytes=0-", "bytes=24-"])
        self.assertEqual(ranges[3:], ["bytes=26-", "bytes=26-", "bytes=27-", "bytes=27-"])

    def test_other_part(self) -> None:
        """If a node sends something else than the rest, nothing of it is passed on."""
        self.patch(time, "sleep", lambda seconds: None)
        for wrong in ("", "bytes 0-25/26", "bytes 25-25/26", "bytes x-25/26", f"bytes {'9' * 5000}-1/2"):
            node = MemoryNode(
                MemoryBody(_BEGIN, lost=True), MemoryBody(_BEGIN + b"3", headers={"Content-Range": wrong})
            )
            data, row = self.stream(node, case.started("web-1", "a"))
            self.assertEqual(data, _BEGIN)
            self.assertIn("something else", row.fetch_problem)

    def test_missed(self) -> None:
        """A reader that was too slow learns what it has missed."""
        node = MemoryNode(MemoryBody(_BEGIN, lost=True), ApiProblem(HttpAddress(host="web-1"), 410, {}))
        self.patch(time, "sleep", lambda seconds: None)
        data, row = self.stream(node, case.started("web-1", "a"))
        self.assertEqual(data, _BEGIN)
        self.assertIn("; the last 100 bytes are missing", row.fetch_problem)

    def test_other_files(self) -> None:
        """Of a capture that is over, the delivered file is passed on; but no rest of another file."""
        headers = {"Content-Type": "application/gzip"}
        node = MemoryNode(MemoryBody(gzip.compress(_BEGIN), headers=headers))
        self.assertEqual(self.stream(node, case.started("web-1", "a"))[0], _BEGIN)
        node = MemoryNode(MemoryBody(_BEGIN, lost=True), MemoryBody(b"xx", headers=headers))
        data, row = self.stream(node, case.started("web-1", "a"))
        self.assertEqual(data, _BEGIN)
        self.assertIn("in another file only", row.fetch_problem)

    def test_no_capture(self) -> None:
        """What is not a capture is not passed on."""
        for headers, body in _WRONG:
            data, row = self.stream(MemoryNode(MemoryBody(body, headers=headers)), case.started("web-1", "a"))
            self.assertEqual(data, b"")
            self.assertIn("neither a pcap nor a pcapng file", row.fetch_problem)

    def test_fault(self) -> None:
        """After an error that nobody expected, the capture is not taken for copied."""
        self.patch(threading, "excepthook", lambda _: None)
        _, row = self.stream(MemoryNode(ZeroDivisionError()), case.started("web-1", "a"))
        self.assertEqual((row.fetch_problem, row.fetched), ("internal error", None))

    def test_reader_gone(self) -> None:
        """Without a reader, the capture is ended."""
        node = MemoryNode(MemoryBody(_BEGIN, b"34"))
        self.stream(node, case.started("web-1", "a"), is_read=False)
        self.assertEqual(node.asked[-1], ("DELETE /captures/a", None))

    def test_one_only(self) -> None:
        """Only one capture is streamed; the others are named."""
        events = [case.started("web-1", "a"), case.started("web-2", "b")]
        data, _ = self.stream(MemoryNode(MemoryBody(_BEGIN)), *events)
        self.assertEqual((data, len(self.notes)), (_BEGIN, 1))
        self.assertIn("b on web-2", self.notes[0])
