"""What is delivered: names, tags, contents."""

from __future__ import annotations

import io
from typing import Any, BinaryIO

from twisted.trial import unittest

from pcapsvc.core.artifact import PCAP_MEDIA_TYPE, Artifact, compressed, file_name, is_file_name
from pcapsvc.core.artifact import make_artifact as make
from pcapsvc.core.compression import COMPRESSIONS
from pcapsvc.core.plan import CapturePlan
from pcapsvc.core.recording import PacketCounts, Recording
from pcapsvc.core.request import CaptureRequest
from pcapsvc.core.session import CaptureLimits, StopReason
from tests.examples import given
from tests.examples import strategies as st


class NoContent:
    """A file without a byte."""

    size = 0

    def open(self) -> BinaryIO:
        """A reader."""
        return io.BytesIO()

    def close(self) -> None:
        """Nothing to let go of."""


def recording(
    *,
    capture_id: str = "0123456789ab",
    node: str = "sensor1",
    interface: str = "eth0",
    alias: str | None = None,
    snap: int = 500,
    packets: int = 3,
    reason: StopReason = StopReason.IDLE,
    counts: PacketCounts | None = None,
    **request: Any,
) -> Recording:
    """A recording of a request with these fields."""
    plan = CapturePlan(
        node=node,
        interface=interface,
        alias=alias,
        bpf=request.get("bpf", ""),
        snap_length=snap,
        limits=CaptureLimits(max_packets=10, max_bytes=1000, idle_seconds=5, duration_seconds=60),
        request=CaptureRequest(node=node, interface=(interface,), **request),
        options={},
        via="test",
    )
    return Recording(
        capture_id=capture_id,
        plan=plan,
        started=1_700_000_000.75,
        link_type=1,
        reason=reason,
        packets=packets,
        counts=counts,
        content=NoContent(),
    )


def name_of(recording: Recording) -> str:
    """The name of a recording's pcap file."""
    return file_name(recording.plan, recording.started, recording.capture_id, ".pcap")


def make_artifact(recording: Recording) -> Artifact:
    """The artifact of a recording as a pcap file."""
    return make(recording, recording.content, suffix=".pcap", media_type=PCAP_MEDIA_TYPE)


class FileNameTests(unittest.SynchronousTestCase):
    """The name of a recording's file."""

    def test_parts(self) -> None:
        """The node, the interface, the second of its start, and its id."""
        self.assertEqual(name_of(recording()), "sensor1-eth0-1700000000-0123456789ab.pcap")
        self.assertEqual(
            name_of(recording(node="a.b_c-d", interface="eth0.100")),
            "a.b_c-d-eth0.100-1700000000-0123456789ab.pcap",
        )

    def test_unique(self) -> None:
        """Two captures of one interface in one second differ by their ids."""
        self.assertNotEqual(name_of(recording(capture_id="a")), name_of(recording(capture_id="b")))

    def test_long(self) -> None:
        """Of names as long as they may be, only the beginning is used."""
        long = recording(node="n" * 253, interface="i" * 127)
        name = file_name(long.plan, long.started, long.capture_id, ".pcapng.zst")
        self.assertEqual(name, f"{'n' * 150}-{'i' * 60}-1700000000-0123456789ab.pcapng.zst")
        self.assertLess(len(name), 256)

    def test_hostile(self) -> None:
        """No name leads elsewhere, hides its file, or means anything to a shell."""
        self.assertEqual(
            name_of(recording(node="../../etc/passwd", interface="$(x)`'\" ")),
            "_.._etc_passwd-__x_____-1700000000-0123456789ab.pcap",
        )
        self.assertEqual(name_of(recording(node=".hidden")), "hidden-eth0-1700000000-0123456789ab.pcap")
        self.assertEqual(name_of(recording(node="ü\0\n")), "___-eth0-1700000000-0123456789ab.pcap")

    @given(st.text(max_size=300), st.text(min_size=1, max_size=127))
    def test_any(self, node: str, interface: str) -> None:
        """Whatever the names are, the file's is ASCII, short enough, and no path."""
        name = name_of(recording(node=node, interface=interface))
        self.assertRegex(name, r"\A(?!\.)[A-Za-z0-9._-]{1,255}\Z")
        self.assertTrue(is_file_name(name, recording().capture_id))
        self.assertTrue(name.endswith("-1700000000-0123456789ab.pcap"))


class ArtifactTests(unittest.SynchronousTestCase):
    """The rest of it."""

    def test_all_tags(self) -> None:
        """All tags, in the order of the original."""
        artifact = make_artifact(
            recording(customer="ACME", alertid=17, alertstr="x", tags="one,two", alias="uplink", snap=64)
        )
        self.assertEqual(
            artifact.tags,
            "customer:ACME,alertid:17,one,two,alias:uplink,node:sensor1,interface:eth0,snaplength:64",
        )

    def test_least_tags(self) -> None:
        """Three of them are always there, and an id of 0 that is a text is one."""
        self.assertEqual(make_artifact(recording()).tags, "node:sensor1,interface:eth0,snaplength:500")
        self.assertTrue(make_artifact(recording(alertid="0")).tags.startswith("alertid:0,"))

    def test_encoded(self) -> None:
        """The suffix, the media type and the content are the encoder's."""
        content = NoContent()
        artifact = make(recording(), content, suffix=".pcapng.gz", media_type="application/gzip")
        self.assertEqual(artifact.name, "sensor1-eth0-1700000000-0123456789ab.pcapng.gz")
        self.assertEqual(artifact.media_type, "application/gzip")
        self.assertIs(artifact.content, content)

    def test_compressed(self) -> None:
        """The file of a compressed one has one more end at its name, and the media type of that."""
        content = NoContent()
        whole = make(recording(), NoContent(), suffix=".pcapng", media_type="application/x-pcapng")
        for name, end in (("gzip", ".gz"), ("zstd", ".zst")):
            made = compressed(whole, content, COMPRESSIONS[name])
            self.assertEqual(made.name, f"{whole.name}{end}")
            self.assertTrue(is_file_name(made.name, made.capture_id))
            self.assertTrue(is_file_name(f"{whole.name}.x{end}", made.capture_id))
            self.assertEqual(made.media_type, f"application/{name}")
            self.assertIs(made.content, content)
            self.assertEqual((made.tags, made.options), (whole.tags, whole.options))

    def test_whole(self) -> None:
        """The name, the id and the content are the recording's."""
        made = recording()
        artifact = make_artifact(made)
        self.assertEqual((artifact.name, artifact.capture_id), (name_of(made), made.capture_id))
        self.assertIs(artifact.content, made.content)
        self.assertIs(artifact.options, made.plan.options)
