"""C{/captures/ID/pcap} of a rolling capture: what it holds."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace
from twisted.internet import error

from pcapsvc.core.admission import NoRoom
from pcapsvc.testing import MemorySnapshot
from pcapsvc.web.file_streams import MEMORY_CHUNK_BYTES
from tests.unit.test_web_pcap import DATA, NAME, Answered, PcapCase


class RollingTests(PcapCase):
    """A rolling capture that is running: what it holds is copied, and the copy is sent."""

    def setUp(self) -> None:
        super().setUp()
        self.files.startService()
        plan = self.capture.plan
        self.capture.plan = replace(plan, limits=replace(plan.limits, is_rolling=True))
        self.capture.data = DATA

    def test_copy(self) -> None:
        """The answer is a copy of what it holds, which is freed as soon as it was sent."""
        answer = self.got()
        self.assertEqual((answer.code, answer.body, answer.is_whole), (200, DATA, True))
        self.assertIn(NAME, answer.headers["content-disposition"])
        self.assertNotIn("etag", answer.headers)
        self.assertNotIn("accept-ranges", answer.headers)
        self.assertEqual((self.files.held_bytes, self.files.held_files), (0, 0))
        self.assertTrue(self.capture.snapshots[0].closed)

    def test_while_it_is_copied(self) -> None:
        """While it is copied, the memory for it counts, and the capture goes on."""
        self.threads.is_holding = True
        client = self.fetch()
        self.assertEqual((client.value(), self.files.held_bytes, self.files.held_files), (b"", 100, 1))
        self.capture.data = bytes(7)
        self.threads.work()
        self.assertEqual(Answered(client.value()).body, DATA)
        self.assertEqual((self.files.held_bytes, self.files.held_files), (0, 0))

    def test_ends_while_it_is_copied(self) -> None:
        """If the capture ends meanwhile, the copy is still what it held."""
        self.threads.is_holding = True
        client = self.fetch()
        self.end().close()
        self.threads.work()
        self.assertEqual(Answered(client.value()).body, DATA)

    def test_slow_client(self) -> None:
        """A copy is kept as long as it is read, unless captures need the memory."""
        self.capture.data = bytes(10 * MEMORY_CHUNK_BYTES)
        client = self.fetch_half()
        self.assertEqual(self.files.held_bytes, 10 * MEMORY_CHUNK_BYTES)
        self.files.reclaim(least_bytes=1, even_watched=False)
        self.assertEqual(self.files.held_bytes, 10 * MEMORY_CHUNK_BYTES)
        client.producer.resumeProducing()
        self.assertTrue(Answered(client.value()).is_whole)
        self.assertEqual(self.files.held_bytes, 0)
        client = self.fetch_half()
        self.files.reclaim(least_bytes=1)
        self.assertEqual(self.files.held_bytes, 0)
        client.producer.resumeProducing()
        self.assertTrue(client.aborted)
        self.assertFalse(Answered(client.value()).is_whole)

    def test_client_gone(self) -> None:
        """If the client disconnects, before or after it was copied, nothing is left."""
        self.threads.is_holding = True
        client = self.fetch()
        client.lose(error.ConnectionDone())
        self.threads.work()
        self.assertEqual(self.files.held_bytes, 0)
        self.threads.is_holding = False
        self.capture.data = bytes(10 * MEMORY_CHUNK_BYTES)
        client = self.fetch_half()
        client.lose(error.ConnectionDone())
        self.assertEqual((self.files.held_bytes, self.files.held_files), (0, 0))

    def test_no_room(self) -> None:
        """Without room for a copy there is none, for now, and nothing is left open."""
        self.files.ask(lambda size: NoRoom(reason=f"no {size} bytes"))
        answer = self.got()
        self.assertEqual((answer.code, answer.headers["retry-after"]), (503, "5"))
        self.assertIn(b"no 100 bytes", answer.body)
        self.files.ask(lambda size: None)

        def fail() -> Any:
            raise OSError(24, "Too many open files")

        for name in ("snapshot", "copy"):
            if name == "copy":
                self.patch(MemorySnapshot, "copy", lambda snapshot: fail())
            else:
                patched = self.patch(self.capture, "snapshot", fail)
            answer = self.got()
            self.assertEqual(answer.code, 503)
            self.assertIn(b"Too many open files", answer.body)
            patched.restore()
        self.assertTrue(all(each.closed for each in self.capture.snapshots))
        self.assertEqual((self.files.held_bytes, self.files.held_files), (0, 0))

    def test_stopping(self) -> None:
        """A copy that is made while the daemon stops is freed."""
        self.threads.is_holding = True
        client = self.fetch()
        self.files.stopService()
        self.threads.work()
        self.assertEqual((Answered(client.value()).code, self.files.held_bytes), (503, 0))

    def test_follow(self) -> None:
        """It can't be followed, and the answer says so."""
        answer = self.got("?follow=1")
        self.assertEqual(answer.code, 409)
        self.assertIn(b"can't be followed", answer.body)
        self.assertEqual(self.capture.snapshots, [])

    def test_head(self) -> None:
        """HEAD copies nothing, and no part of what changes can be had."""
        answer = self.got(method="HEAD")
        self.assertEqual((answer.code, answer.body), (200, b""))
        self.assertEqual(self.capture.snapshots, [])
        self.assertEqual(self.got(If_Match='"abc1-100"').code, 412)
        answer = self.got(Range="bytes=10-19")
        self.assertEqual((answer.code, answer.body), (200, DATA))

    def test_ended(self) -> None:
        """After its end, its file is like any other."""
        content = self.end()
        answer = self.got(Range="bytes=10-19")
        self.assertEqual((answer.code, answer.body), (206, DATA[10:20]))
        self.assertEqual(self.got("?follow=1").code, 200)
        content.close()
