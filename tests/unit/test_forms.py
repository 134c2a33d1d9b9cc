"""One capture, in the form that each destination wants."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from typing import Any

import zstandard
from twisted.internet.defer import Deferred, fail, succeed
from zope.interface.verify import verifyObject

from pcapsvc.core.compression import CompressionChoice
from pcapsvc.core.errors import DestinationError
from pcapsvc.core.event import (
    CaptureDelivered,
    CaptureDone,
    CaptureFailed,
    CaptureStopped,
    DeliveryFailed,
    RequestAccepted,
)
from pcapsvc.core.result import Accepted
from pcapsvc.interfaces.delivery import IDelivery
from pcapsvc.interfaces.lifecycle import IHurriable
from pcapsvc.testing import run_now
from peers.frames import udp_frame
from tests.unit.pipeline_case import PipelineCase, packets_in
from tests.unit.test_encoders import ReversingEncoder

_FRAMES = [udp_frame(number) for number in range(3)]
_NO_ZSTD = CompressionChoice(readable=("gzip", "none"))


def unzstd(data: bytes) -> bytes:
    """A file as it was before."""
    return zstandard.ZstdDecompressor().decompress(data)


class FormsCase(PipelineCase):
    """Two destinations. Each test checks that no content stays open, and that no memory counts as used."""

    def capture(self, **fields: Any) -> str:
        """Capture some packets."""
        capture_id = self.begin(packets=len(_FRAMES), **fields)
        self.arrive(*_FRAMES)
        return capture_id

    def delivered(self) -> dict[str, CaptureDelivered]:
        """What each destination has."""
        return {data.destination: data for data in self.events(CaptureDelivered)}

    def assert_free(self) -> None:
        """No memory is used, and a capture of all of it can begin."""
        verdict = self.submit(interface=["mem1"], bytes=self.max_memory)
        self.assertIsInstance(verdict, Accepted)
        self.successResultOf(self.stop())


class FormsTests(FormsCase):
    """By default, one destination wants gzip, and the other one neither wants nor reads zstd."""

    compressions = {"one": CompressionChoice(usual="gzip"), "two": _NO_ZSTD}
    max_memory = 1 << 20

    def test_interfaces(self) -> None:
        """It is one."""
        self.assertTrue(verifyObject(IDelivery, self.delivery))
        self.assertTrue(verifyObject(IHurriable, self.delivery))

    def test_defaults(self) -> None:
        """Each destination has its default, with the name and the type of that, and the same packets."""
        capture_id = self.capture()
        [(one, compressed)], [(two, plain)] = self.one.files.items(), self.two.files.items()
        self.assertTrue(one.endswith(f"-{capture_id}.pcap.gz"), one)
        self.assertTrue(two.endswith(f"-{capture_id}.pcap"), two)
        self.assertEqual(gzip.decompress(compressed), plain)
        self.assertEqual(packets_in(plain), _FRAMES)
        self.assertEqual(self.one.artifacts[0].media_type, "application/gzip")
        self.assertEqual(self.two.artifacts[0].media_type, "application/vnd.tcpdump.pcap")
        self.assert_free()

    def test_events(self) -> None:
        """Each has its event, with what is there. The end of the capture tells of the recording."""
        self.capture()
        found = self.delivered()
        [(one, compressed)], [(two, plain)] = self.one.files.items(), self.two.files.items()
        self.assertEqual(
            [(each.file, each.media_type, each.bytes) for each in (found["one"], found["two"])],
            [
                (one, "application/gzip", len(compressed)),
                (two, "application/vnd.tcpdump.pcap", len(plain)),
            ],
        )
        [stopped] = self.events(CaptureStopped)
        self.assertEqual((stopped.file, stopped.bytes), (two, len(plain)))
        self.assertEqual(len(self.events(CaptureDone)), 1)

    def test_asked(self) -> None:
        """A request decides for all destinations. What one can't read is gzip there, with a warning."""
        verdict = self.submit(interface=["mem0"], packets=3, compress="zstd")
        self.arrive(*_FRAMES)
        [(one, compressed)], [(two, other)] = self.one.files.items(), self.two.files.items()
        self.assertEqual((one[-9:], two[-8:]), (".pcap.zst", ".pcap.gz"))
        self.assertEqual(unzstd(compressed), gzip.decompress(other))
        self.assertEqual(self.one.artifacts[0].media_type, "application/zstd")
        assert isinstance(verdict, Accepted)
        rule = 'compress = "zstd": can\'t be read by two, which gets gzip'
        self.assertEqual([*map(str, verdict.warnings)], [rule])
        [accepted] = self.events(RequestAccepted)
        self.assertEqual(accepted.warnings, verdict.warnings)

    def test_none(self) -> None:
        """A request may also ask for no compression, which is no reason for a warning."""
        verdict = self.submit(interface=["mem0"], packets=3, compress="none")
        self.arrive(*_FRAMES)
        self.assertEqual([*self.one.files], [*self.two.files])
        assert isinstance(verdict, Accepted)
        self.assertEqual(verdict.warnings, ())

    def test_shared(self) -> None:
        """Destinations that want the same have one file, which is open until both have it."""
        hanging: Deferred[Any] = Deferred()
        self.two.answer = lambda: hanging
        self.capture(compress="gzip")
        [one], [two] = self.one.artifacts, self.two.artifacts
        self.assertIs(one.content, two.content)
        one.content.open().close()
        hanging.callback(None)
        self.assertRaises(OSError, one.content.open)

    def test_released(self) -> None:
        """A form is closed when its last destination has it, and the recording when no form needs it."""
        hanging: Deferred[Any] = Deferred()
        self.two.answer = lambda: hanging
        self.capture()
        [one], [two] = self.one.artifacts, self.two.artifacts
        self.assertRaises(OSError, one.content.open)
        two.content.open().close()
        hanging.callback(None)
        self.assertRaises(OSError, two.content.open)
        self.assert_free()

    def test_recording_released(self) -> None:
        """Once a file is compressed in memory, and nobody wants it as it is, the recording is closed."""
        hanging: Deferred[Any] = Deferred()
        self.one.answer = self.two.answer = lambda: hanging
        capture_id = self.capture(compress="gzip")
        self.assertIsNone(self.files.find(capture_id))
        hanging.callback(None)
        self.assertEqual(len(self.delivered()), 2)
        self.assert_free()

    def test_down(self) -> None:
        """If one destination is down, the others are not affected."""
        self.one.answer = lambda: fail(DestinationError("no route to host", retryable=True))
        self.capture()
        self.assertEqual([*self.delivered()], ["two"])
        [failed] = self.events(DeliveryFailed)
        self.assertEqual((failed.destination, failed.problem), ("one", "no route to host"))


class FormatTests(FormsCase):
    """A node whose usual format is another one."""

    encoder = ReversingEncoder()
    compressions = {"one": CompressionChoice(usual="zstd")}

    def test_both(self) -> None:
        """The file in that format is compressed, with both ends at its name."""
        capture_id = self.capture()
        [(one, compressed)], [plain] = self.one.files.items(), self.two.files.values()
        self.assertTrue(one.endswith(f"-{capture_id}.pcap.rev.zst"), one)
        self.assertEqual(unzstd(compressed), plain)
        self.assertEqual(packets_in(plain[::-1]), _FRAMES)


class ThreadsCase(FormsCase):
    """A pipeline whose compressions are done when the test says so."""

    compressions = {"one": CompressionChoice(usual="gzip"), "two": CompressionChoice()}

    def setUp(self) -> None:
        """Build it."""
        self.work: list[tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...]]] = []
        self.run_in_thread = self.run_later
        super().setUp()
        self.delivery.startService()
        # As in a daemon, threads do in the end what they were given, and close what they were to read.
        self.addCleanup(self.run_all)

    def run_later(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """Keep what is to be run."""
        done: Deferred[Any] = Deferred()
        self.work.append((done, function, arguments))
        return done

    def run_all(self) -> None:
        """The threads do their work."""
        work, self.work = self.work, []
        for done, function, arguments in work:
            result = run_now(function, *arguments)
            result.chainDeferred(done)
            result.addErrback(lambda _: None)


class LateTests(ThreadsCase):
    """While a file is compressed."""

    def test_no_waiting(self) -> None:
        """A destination that wants the file as it is doesn't wait. The capture is done when all have it."""
        self.capture()
        self.assertEqual([*self.delivered()], ["two"])
        self.assertEqual(self.events(CaptureDone), [])
        self.run_all()
        self.assertEqual([*self.delivered()], ["two", "one"])
        self.assertEqual(len(self.events(CaptureDone)), 1)

    def test_failure(self) -> None:
        """If it can't be compressed, that delivery fails, with its reason, and nothing else."""
        self.capture()
        self.work.pop()[0].errback(MemoryError("no memory for it"))
        [failed] = self.events(DeliveryFailed)
        problem = "not compressed with gzip: no memory for it"
        self.assertEqual((failed.destination, failed.problem), ("one", problem))
        self.assertEqual([*self.delivered()], ["two"])
        self.assertEqual((len(self.events(CaptureDone)), self.events(CaptureFailed)), (1, []))
        self.capture()
        self.run_all()
        self.assertEqual(len(self.one.files), 1)

    def test_cancelled(self) -> None:
        """If a stop cancels it, it is lost to that destination. Nothing stays open."""
        self.capture()
        stopping = self.stop()
        self.assertNoResult(stopping)
        stopping.cancel()
        self.successResultOf(stopping)
        [failed] = self.events(DeliveryFailed)
        self.assertEqual(failed.problem, "not compressed with gzip: the daemon stopped")


class HurriedTests(ThreadsCase):
    """A node that stops."""

    def test_hurried(self) -> None:
        """If time is short, what isn't compressed yet is delivered as it is, rather than lost."""
        self.capture()
        self.delivery.hurry()
        self.capture()
        self.assertEqual(len(self.one.files), 2)
        for name, data in self.one.files.items():
            self.assertEqual((name[-5:], packets_in(data)), (".pcap", _FRAMES))
        self.assertEqual(self.events(DeliveryFailed), [])

    def test_started_again(self) -> None:
        """After the next start, files are compressed."""
        self.delivery.hurry()
        self.delivery.startService()
        self.capture()
        self.run_all()
        self.assertEqual([name[-3:] for name in self.one.files], [".gz"])


class ManyTests(FormsCase):
    """A node that has no memory left."""

    max_memory = 3000
    compressions = {"one": CompressionChoice(usual="gzip"), "two": CompressionChoice(usual="zstd")}

    def test_no_memory(self) -> None:
        """If the memory of captures is used up, files are compressed while they are read."""
        kept = [succeed(None), succeed(None)]
        self.one.answer = self.two.answer = lambda: kept.pop()
        self.begin(interface=["mem1"], bytes=2500)
        capture_id = self.capture(bytes=500)
        self.assertEqual(len(self.delivered()), 2)
        self.assertEqual(gzip.decompress(*self.one.files.values()), unzstd(*self.two.files.values()))
        self.assertIsNone(self.files.find(capture_id))
        self.successResultOf(self.stop())
