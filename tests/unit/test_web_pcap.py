"""C{/captures/ID/pcap}: the packets of a capture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.internet import error
from twisted.internet.defer import Deferred

from pcapsvc.core.event import CaptureDelivered, CaptureDone, CaptureFailed, CaptureStopped, DeliverySpooled
from pcapsvc.core.session import StopReason
from pcapsvc.net.http_server import CLOSE_SECONDS
from pcapsvc.testing import MemoryCapture, MemoryContent, run_now
from pcapsvc.web.file_streams import DISK_CHUNK_BYTES, FOLLOW_SECONDS, MEMORY_CHUNK_BYTES
from tests.core.test_artifact import recording
from tests.unit.http_case import HTTPTestCase, Transport

NAME = "sensor1-eth0-1700000000-abc1.pcap"
DATA = bytes(range(100))
STOPPED = CaptureStopped(reason=StopReason.PACKETS, packets=3, bytes=len(DATA), counts=None, file=NAME)


class Answered:
    """
    What a client has received of an answer so far.

    @ivar body: its content, as far as it has arrived.
    @ivar is_whole: whether all of it has.
    """

    def __init__(self, raw: bytes) -> None:
        head, _, rest = raw.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        self.code = int(status.split(" ")[1])
        self.headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        self.body, self.is_whole = b"", False
        if "content-length" in self.headers:
            self.body = rest
            self.is_whole = len(rest) == int(self.headers["content-length"])
            return
        while rest and not self.is_whole:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size, 16)
            self.body += rest[:length]
            rest = rest[length + 2 :]
            self.is_whole = length == 0


class Threads:
    """
    Threads whose work waits until the test has it done.

    @ivar waiting: the work that is to be done.
    """

    def __init__(self) -> None:
        self.waiting: list[tuple[Any, tuple[Any, ...], Deferred[Any]]] = []
        self.is_holding = False

    def run(self, function: Any, *args: Any) -> Deferred[Any]:
        """Run a function, later if work is being held."""
        if not self.is_holding:
            return run_now(function, *args)
        self.waiting.append((function, args, Deferred()))
        return self.waiting[-1][2]

    def work(self) -> None:
        """Do the work that has waited longest."""
        function, args, result = self.waiting.pop(0)
        run_now(function, *args).addCallbacks(result.callback, result.errback)


class PcapCase(HTTPTestCase):
    """Captures, of which one runs."""

    retain_bytes = 10**6

    def setUp(self) -> None:
        self.threads = Threads()
        self.spooled: list[tuple[Any, str]] = []
        self.places = {
            "run_in_thread": self.threads.run,
            "copy_in_thread": self.threads.run,
            "in_spool": self.in_spool,
        }
        super().setUp()
        self.before = set(os.listdir("/proc/self/fd"))
        self.capture = MemoryCapture("abc1", recording().plan, DATA[:40])
        self.captures.add(self.capture)
        self.files.begin(self.capture)

    async def in_spool(self, capture_id: str) -> tuple[Any, str] | None:
        """What the spool has."""
        return self.spooled[0] if self.spooled and capture_id == "abc1" else None

    def tearDown(self) -> None:
        """No descriptor and no timer is left."""
        self.files.stopService()
        self.assertLessEqual(set(os.listdir("/proc/self/fd")), self.before)
        self.successResultOf(self.source.stopService())
        self.clock.advance(0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def fetch(self, query: str = "", *, method: str = "GET", **headers: str) -> Transport:
        """A client that asks for the packets."""
        given = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        return self.say(
            f"{method} /captures/abc1/pcap{query} HTTP/1.1\r\nHost: localhost\r\n{given}\r\n".encode()
        )

    def fetch_half(self) -> Transport:
        """A client that reads slowly: one piece of a file is on its way."""
        client = self.connect()
        write, pieces = client.write, []

        def fill(data: bytes) -> None:
            write(data)
            if len(data) == MEMORY_CHUNK_BYTES and not pieces:
                pieces.append(data)
                client.producer.pauseProducing()

        client.write = fill  # type: ignore[method-assign]
        client.send(b"GET /captures/abc1/pcap HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return client

    def got(self, query: str = "", *, method: str = "GET", **headers: str) -> Answered:
        """The answer to a client that asks for the packets."""
        return Answered(self.fetch(query, method=method, **headers).value())

    def end(self) -> Any:
        """The capture ends, and is to be delivered."""
        content = self.files.end("abc1", MemoryContent(DATA))
        self.report("abc1", STOPPED)
        return content

    def free(self) -> None:
        """The capture has ended, and its memory is free."""
        self.end().close()
        self.files.reclaim(least_files=1)


class MemoryTests(PcapCase):
    """While a capture is in memory."""

    def test_running(self) -> None:
        """The answer is what there is so far. It can't be told whether it has changed."""
        answer = self.got()
        self.assertEqual((answer.code, answer.body, answer.is_whole), (200, DATA[:40], True))
        self.assertEqual(answer.headers["content-type"], "application/vnd.tcpdump.pcap")
        self.assertEqual(answer.headers["content-disposition"], f'attachment; filename="{NAME}"')
        self.assertEqual(answer.headers["accept-ranges"], "bytes")
        self.assertNotIn("etag", answer.headers)
        self.assertTrue(self.ask("GET", "/captures/abc1").content["pcap"])

    def test_running_part(self) -> None:
        """A client can ask for what is new. The size of the whole is not known."""
        answer = self.got(Range="bytes=30-")
        self.assertEqual((answer.code, answer.body), (206, DATA[30:40]))
        self.assertEqual(answer.headers["content-range"], "bytes 30-39/*")
        self.assertEqual(self.got(Range="bytes=40-").code, 416)

    def test_ended(self) -> None:
        """After the end, the answer is the whole file, whose tag never changes."""
        content = self.end()
        for _ in range(2):
            answer = self.got()
            self.assertEqual((answer.code, answer.body), (200, DATA))
            self.assertEqual(answer.headers["etag"], '"abc1-100"')
            content.close()
        self.assertEqual(self.got("?follow=1").body, DATA)

    def test_head(self) -> None:
        """HEAD has the headers of GET, and no body; ranges don't apply to it."""
        self.end()
        expected = self.got().headers
        for headers in ({}, {"Range": "bytes=1-2"}):
            answer = self.got(method="HEAD", **headers)
            self.assertEqual((answer.code, answer.headers, answer.body), (200, expected, b""))

    def test_parts(self) -> None:
        """A client can ask for a part; several parts, or what is no range, stand for the whole."""
        self.end()
        for asked, code, body in (
            ("bytes=0-9", 206, DATA[:10]),
            ("bytes=90-200", 206, DATA[90:]),
            ("bytes=-1", 206, DATA[-1:]),
            ("bytes=0-1,4-5", 200, DATA),
            ("lines=1-2", 200, DATA),
        ):
            answer = self.got(Range=asked)
            self.assertEqual((answer.code, answer.body), (code, body), asked)
        self.assertEqual(self.got(Range="bytes=0-9").headers["content-range"], "bytes 0-9/100")
        answer = self.got(Range="bytes=100-")
        self.assertEqual((answer.code, answer.headers["content-range"]), (416, "bytes */100"))
        self.assertEqual(answer.headers["content-type"], "application/problem+json")

    def test_conditions(self) -> None:
        """A part of a file that has changed is the whole; one that is known is not sent again."""
        for wanted, code in (("*", 200), ('"abc1-40"', 412)):
            self.assertEqual(self.got(If_Match=wanted).code, code, wanted)
        self.end()
        for headers, code in (
            ({"If_Range": '"abc1-100"', "Range": "bytes=0-9"}, 206),
            ({"If_Range": '"abc1-40"', "Range": "bytes=0-9"}, 200),
            ({"If_Range": "Sun, 29 Nov 2026 17:00:00 GMT", "Range": "bytes=0-9"}, 200),
            ({"If_None_Match": '"abc1-100"'}, 304),
            ({"If_None_Match": '"abc1-40", W/"abc1-100"'}, 304),
            ({"If_None_Match": '"abc1-40"'}, 200),
            ({"If_Match": '"abc1-100"'}, 200),
            ({"If_Match": '"abc1-40"'}, 412),
            ({"If_Match": 'W/"abc1-100"'}, 412),
            ({"If_Match": "*"}, 200),
        ):
            answer = self.got(**headers)
            self.assertEqual(answer.code, code, headers)
            if code == 304:
                self.assertEqual(answer.body, b"")

    def test_parameters(self) -> None:
        """Unknown parameters and values are refused, all at once."""
        self.assertEqual(self.got("?follow=1&follow=1").code, 400)
        self.assertEqual(self.got("?follow=0").body, DATA[:40])
        content = self.ask("GET", "/captures/abc1/pcap?follow=yes&delivered=2&fellow=1").content
        self.assertEqual({each["path"] for each in content["problems"]}, {"follow", "delivered", "fellow"})

    def test_gone(self) -> None:
        """A capture that is held nowhere is gone; one that nobody knows was never there."""
        self.free()
        self.report("abc1", CaptureDone())
        self.assertEqual(self.got().code, 410)
        self.assertFalse(self.ask("GET", "/captures/abc1").content["pcap"])
        self.assertEqual(self.ask("GET", "/captures/abc2/pcap").code, 404)
        self.assertEqual(self.ask("GET", "/captures/abc1/other").code, 404)
        self.assertEqual(self.ask("POST", "/captures/abc1/pcap").code, 405)

    def test_freed_halfway(self) -> None:
        """If the memory is freed while a client reads, the connection is lost: what it has is not whole."""
        self.files.end("abc1", MemoryContent(bytes(2 * MEMORY_CHUNK_BYTES))).close()
        client = self.fetch_half()
        self.files.reclaim(least_files=1)
        self.assertFalse(client.aborted)
        client.producer.resumeProducing()
        self.assertTrue(client.aborted)
        self.assertEqual(len(Answered(client.value()).body), MEMORY_CHUNK_BYTES)


class FollowTests(PcapCase):
    """C{?follow=1}: a client that reads along."""

    def follow(self) -> Transport:
        """A client that reads along."""
        client = self.fetch("?follow=1")
        answer = Answered(client.value())
        self.assertEqual((answer.code, answer.body, answer.is_whole), (200, DATA[:40], False))
        self.assertEqual(answer.headers["content-disposition"], f'attachment; filename="{NAME}"')
        return client

    def test_follow(self) -> None:
        """What is captured is sent soon, until the capture ends; then the answer ends, and the file stays."""
        client = self.follow()
        self.capture.data = DATA[:70]
        self.assertEqual(Answered(client.value()).body, DATA[:40])
        self.clock.advance(FOLLOW_SECONDS)
        self.assertEqual(Answered(client.value()).body, DATA[:70])
        self.clock.advance(FOLLOW_SECONDS)
        content = self.end()
        answer = Answered(client.value())
        self.assertEqual((answer.body, answer.is_whole), (DATA, True))
        self.assertFalse(client.is_lost)
        content.close()

    def test_paused(self) -> None:
        """Nothing is read for a client that doesn't read; after the capture's end it gets the rest."""
        client = self.follow()
        client.producer.pauseProducing()
        self.capture.data = DATA[:70]
        self.clock.advance(FOLLOW_SECONDS)
        content = self.end()
        self.assertEqual(Answered(client.value()).body, DATA[:40])
        client.producer.resumeProducing()
        answer = Answered(client.value())
        self.assertEqual((answer.body, answer.is_whole), (DATA, True))
        content.close()

    def test_nothing_to_send(self) -> None:
        """A capture without packets doesn't end the stream, however long it takes."""
        client = self.follow()
        for _ in range(600):
            self.clock.advance(1)
        self.assertFalse(client.is_lost)
        self.end().close()
        self.assertTrue(Answered(client.value()).is_whole)

    def test_client_gone(self) -> None:
        """A client that goes away leaves nothing behind."""
        client = self.follow()
        client.lose(error.ConnectionLost())
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.end().close()

    def test_half_closed(self) -> None:
        """A client that only shuts down its side gets a file to its end, and does not read along."""
        client = self.follow()
        client.protocol.readConnectionLost()
        self.assertTrue(client.is_lost)
        data = bytes(2 * MEMORY_CHUNK_BYTES)
        self.files.end("abc1", MemoryContent(data))
        client = self.fetch_half()
        client.protocol.readConnectionLost()
        self.assertFalse(client.is_lost)
        client.producer.resumeProducing()
        self.assertEqual(Answered(client.value()).body, data)
        self.clock.advance(0)
        self.assertTrue(client.is_lost)

    def test_failed(self) -> None:
        """If the capture fails, the connection is lost: what the client has is not whole."""
        client = self.follow()
        self.files.fail("abc1")
        self.report("abc1", CaptureFailed(problem="no memory"))
        self.assertTrue(client.aborted)
        self.assertFalse(Answered(client.value()).is_whole)
        self.assertEqual(self.got().code, 410)

    def test_stop(self) -> None:
        """A stop of the daemon ends the stream at once, and not as if it were whole."""
        client, stubborn = self.follow(), self.follow()
        stubborn.stubborn = True
        stopped = self.source.stopService()
        self.assertTrue(client.is_lost)
        self.assertFalse(Answered(client.value()).is_whole)
        self.clock.advance(CLOSE_SECONDS)
        self.assertTrue(stubborn.aborted)
        self.successResultOf(stopped)

    def test_stalled(self) -> None:
        """A client that reads nothing of what waits for it is disconnected after a while."""
        client = self.follow()
        client.producer.pauseProducing()
        self.clock.advance(29)
        self.assertFalse(client.is_lost)
        self.clock.advance(1)
        self.assertTrue(client.is_lost)


class DiskTests(PcapCase):
    """After the memory of a capture was freed."""

    def setUp(self) -> None:
        super().setUp()
        self.path = Path(self.mktemp()).absolute()
        self.path.mkdir()
        self.path /= NAME
        self.path.write_bytes(DATA)
        self.free()

    def deliver(self) -> None:
        """The capture is in the local directory."""
        self.report("abc1", CaptureDelivered(destination="local", location=str(self.path), seconds=0.1))
        self.report("abc1", CaptureDone())

    def spool(self) -> None:
        """The capture is in the spool."""
        entry = type("Entry", (), {"name": NAME, "size": len(DATA), "media_type": "application/x-test"})
        self.report("abc1", DeliverySpooled(destination="s3", problem="refused"))
        self.spooled.append((entry, str(self.path)))

    def test_local(self) -> None:
        """It is read from the local directory: whole, in part, and not at all for HEAD."""
        self.deliver()
        self.assertTrue(self.ask("GET", "/captures/abc1").content["pcap"])
        answer = self.got()
        self.assertEqual((answer.code, answer.body, answer.is_whole), (200, DATA, True))
        self.assertEqual(answer.headers["content-disposition"], f'attachment; filename="{NAME}"')
        self.assertEqual(answer.headers["etag"], '"abc1-100"')
        self.assertEqual(self.got(Range="bytes=10-19").body, DATA[10:20])
        self.assertEqual(self.got(method="HEAD").headers, answer.headers)
        self.assertEqual(self.got(Range="bytes=100-").code, 416)
        self.assertEqual(self.got(If_None_Match='"abc1-100"').code, 304)
        self.assertEqual(self.got("?follow=1").body, DATA)

    def test_form(self) -> None:
        """What was delivered in another form is sent as that, and is another file than the recording."""
        path = self.path.with_name(f"{NAME}.gz")
        path.write_bytes(DATA[:60])
        self.report(
            "abc1",
            CaptureDelivered(
                destination="local",
                location=str(path),
                seconds=0.1,
                file=path.name,
                media_type="application/gzip",
                bytes=60,
            ),
        )
        answer = self.got()
        self.assertEqual((answer.code, answer.body), (200, DATA[:60]))
        self.assertEqual(answer.headers["content-type"], "application/gzip")
        self.assertEqual(answer.headers["content-disposition"], f'attachment; filename="{NAME}.gz"')
        self.assertEqual(answer.headers["etag"], '"abc1-60.pcap.gz"')
        self.assertEqual(self.got(Range="bytes=50-", If_Range=answer.headers["etag"]).body, DATA[50:60])
        self.assertEqual(self.got(If_Match='"abc1-100"').code, 412)
        [delivery] = self.ask("GET", "/captures/abc1").content["deliveries"]
        self.assertEqual((delivery["media_type"], delivery["bytes"]), ("application/gzip", 60))

    def test_not_delivered(self) -> None:
        """What was never delivered to this host can't be sent as it was delivered."""
        self.assertEqual(self.got("?delivered=1").code, 409)
        self.report("abc1", CaptureDone())
        self.assertEqual(self.got("?delivered=1").code, 410)

    def test_spool(self) -> None:
        """It is read from the spool, also if nothing else is known of it after a restart."""
        self.spool()
        self.assertTrue(self.ask("GET", "/captures/abc1").content["pcap"])
        answer = self.got()
        self.assertEqual((answer.code, answer.body), (200, DATA))
        self.assertEqual(answer.headers["content-type"], "application/x-test")

    def test_not_what_it_was(self) -> None:
        """A file that was removed, changed or replaced is not sent; another one may be there."""
        self.deliver()
        self.path.unlink()
        self.assertEqual(self.got().code, 410)
        self.path.write_bytes(DATA[1:])
        self.assertEqual(self.got().code, 410)
        self.path.unlink()
        self.path.symlink_to("/etc/passwd")
        self.assertEqual(self.got().code, 410)
        self.path.unlink()
        os.mkfifo(self.path)
        self.assertEqual(self.got().code, 410)
        self.path.unlink()
        other = self.path.with_name("other")
        other.write_bytes(DATA)
        self.spool()
        self.spooled[0] = (self.spooled[0][0], str(other))
        self.assertEqual(self.got().body, DATA)

    def test_client_gone(self) -> None:
        """A client that goes away at any moment leaves no descriptor open."""
        self.deliver()
        for works in range(4):
            self.threads.is_holding = True
            client = self.fetch()
            for _ in range(works):
                if self.threads.waiting:
                    self.threads.work()
            client.lose(error.ConnectionLost())
            while self.threads.waiting:
                self.threads.work()
            self.assertLessEqual(set(os.listdir("/proc/self/fd")), self.before, works)

    def test_stop(self) -> None:
        """A stop doesn't wait for a disk that hangs; what was open is closed when it answers."""
        self.deliver()
        self.threads.is_holding = True
        client = self.fetch()
        self.threads.work()
        self.assertEqual(len(self.threads.waiting), 1)
        self.successResultOf(self.source.stopService())
        self.assertTrue(client.is_lost)
        while self.threads.waiting:
            self.threads.work()

    def test_shortened_halfway(self) -> None:
        """If the file is cut while it is sent, the connection is lost: what the client has is not whole."""
        data = bytes(2 * DISK_CHUNK_BYTES)
        self.path.write_bytes(data)
        self.report(
            "abc1",
            CaptureStopped(reason=StopReason.PACKETS, packets=3, bytes=len(data), counts=None, file=NAME),
        )
        self.deliver()
        self.threads.is_holding = True
        client = self.fetch()
        self.threads.work()
        self.threads.work()
        os.truncate(self.path, DISK_CHUNK_BYTES)
        while self.threads.waiting:
            self.threads.work()
        self.assertTrue(client.aborted)
        self.assertEqual(len(Answered(client.value()).body), DISK_CHUNK_BYTES)

    def test_paused(self) -> None:
        """Nothing more is read while the client doesn't read."""
        self.deliver()
        self.threads.is_holding = True
        client = self.fetch()
        self.threads.work()
        client.producer.pauseProducing()
        self.threads.work()
        self.assertEqual(self.threads.waiting, [])
        client.producer.resumeProducing()
        while self.threads.waiting:
            self.threads.work()
        self.assertTrue(Answered(client.value()).is_whole)
