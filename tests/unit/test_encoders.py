"""Encoders: from a recording to the file that is delivered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial import unittest
from zope.interface import implementer
from zope.interface.verify import verifyObject

from pcapsvc.core.errors import EncoderError
from pcapsvc.core.event import CaptureDelivered, CaptureDone, CaptureFailed
from pcapsvc.core.recording import Content, Recording
from pcapsvc.encoders.pcap.encoder import PcapEncoder
from pcapsvc.interfaces.delivery import IEncoder
from peers.frames import udp_frame
from tests.core.test_artifact import recording
from tests.unit.contents import MemfdContent
from tests.unit.pipeline_case import PipelineCase, packets_in


@implementer(IEncoder)
class ReversingEncoder:
    """
    Writes the file backwards.

    @ivar made: the contents that it made.
    @ivar answer: makes the Deferred of each recording; the default encodes it at once.
    """

    name = "reversed"
    suffix = ".pcap.rev"
    media_type = "application/x-reversed"

    def __init__(self) -> None:
        self.made: list[MemfdContent] = []
        self.answer: Callable[[], Deferred[Any]] = lambda: succeed(None)

    def encode(self, recording: Recording) -> Deferred[Content]:
        """Encode a recording: see L{IEncoder.encode}."""

        def reversed_content(_: object) -> Content:
            with recording.content.open() as file:
                self.made.append(MemfdContent(file.read()[::-1]))
            return self.made[-1]

        return self.answer().addCallback(reversed_content)


class PcapTests(unittest.SynchronousTestCase):
    """L{PcapEncoder}."""

    def test_same(self) -> None:
        """A recording is a pcap file already."""
        encoder = PcapEncoder()
        self.assertTrue(verifyObject(IEncoder, encoder))
        self.assertEqual((encoder.name, encoder.suffix), ("pcap", ".pcap"))
        recorded = recording()
        self.assertIs(self.successResultOf(encoder.encode(recorded)), recorded.content)


class EncodingTests(PipelineCase):
    """An encoder in the pipeline. Each test checks that no content stays open."""

    def setUp(self) -> None:
        """Build it."""
        self.reversing = ReversingEncoder()
        self.encoder = self.reversing
        super().setUp()

    def capture(self) -> str:
        """Capture a packet."""
        capture_id = self.begin(packets=1)
        self.arrive(udp_frame(1))
        return capture_id

    def failures(self) -> list[tuple[str | None, str]]:
        """The captures that failed, and why."""
        return [
            (event.subject, event.data.problem)
            for event in self.reporter.events
            if isinstance(event.data, CaptureFailed)
        ]

    def test_encoded(self) -> None:
        """What the encoder makes is delivered, with its suffix and its media type."""
        capture_id = self.capture()
        [(name, data)] = self.one.files.items()
        self.assertTrue(name.endswith(f"-{capture_id}.pcap.rev"), name)
        self.assertEqual(self.one.artifacts[0].media_type, "application/x-reversed")
        self.assertEqual(packets_in(data[::-1]), [udp_frame(1)])
        self.assertEqual(len(self.events(CaptureDelivered)), 2)

    def test_open_until_delivered(self) -> None:
        """Its content stays open until the last delivery has ended."""
        hanging: Deferred[Any] = Deferred()
        self.one.answer = lambda: hanging
        self.capture()
        [content] = self.reversing.made
        content.open().close()
        hanging.callback(None)
        self.assertRaises(OSError, content.open)

    def test_error(self) -> None:
        """If the encoder fails, this capture fails, with its reason, and no other."""
        answers = [fail(EncoderError("no space left")), succeed(None)]
        self.reversing.answer = lambda: answers.pop(0)
        first, _ = self.capture(), self.capture()
        self.assertEqual(self.failures(), [(first, "not encoded as reversed: no space left")])
        self.assertEqual((len(self.one.files), len(self.events(CaptureDone))), (1, 2))

    def test_internal_error(self) -> None:
        """So it is if the encoder has a bug, which is logged."""
        for answer in (lambda: fail(ZeroDivisionError()), lambda: 1 / 0):
            self.reversing.answer = answer
            self.capture()
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(len(self.failures()), 2)
        self.assertEqual(self.one.files, {})

    def test_cancelled(self) -> None:
        """If a stop cancels the encoder, the capture fails."""
        self.reversing.answer = Deferred
        capture_id = self.capture()
        stopping = self.stop()
        self.assertNoResult(stopping)
        stopping.cancel()
        self.successResultOf(stopping)
        self.assertEqual(self.failures(), [(capture_id, "not encoded as reversed: the daemon stopped")])
