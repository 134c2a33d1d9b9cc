"""The manifest of a capture in the spool."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, BinaryIO

from twisted.trial import unittest

from pcapsvc.core.artifact import Artifact
from pcapsvc.core.errors import SpoolError
from pcapsvc.core.labels import Labels
from pcapsvc.core.spool_entry import SpoolEntry, decode_entry, encode_entry, is_entry_name, make_entry
from tests.examples import given
from tests.examples import strategies as st


class NoContent:
    """No bytes at all."""

    size = 0

    def open(self) -> BinaryIO:
        return io.BytesIO()

    def close(self) -> None:
        pass


LABELS = Labels(via="kafka", requestid="r-1", alertid=17, customer="Zoë", tags="one,two", interface="eth0")
#: As version 1 wrote it.
MANIFEST_1 = (Path(__file__).parent / "manifests" / "version1.json").read_bytes()


#: Names that no request can produce for the capture C{f3a9c2d41b07}.
FOREIGN_NAMES = (
    "lock",
    "evil.sh",
    "f3a9c2d41b07.pcap",
    "web1-f3a9c2d41b07.pcap",
    "eth0-1-f3a9c2d41b07.pcap",
    "web1-eth0-1-f3a9c2d41b08.pcap",
    "web1-eth0-1-f3a9c2d41b07",
    "web1-eth0-1-f3a9c2d41b07.",
    "web1-eth0-1-f3a9c2d41b07.pcap.gz.1.sh",
    "web1-eth0-1-f3a9c2d41b07.pcap-1-other.pcap",
    "web1-eth0-now-f3a9c2d41b07.pcap",
)


def entry(tags: str = "customer:Zoë", **options: Any) -> SpoolEntry:
    """An entry of a capture for S3."""
    artifact = Artifact(
        capture_id="f3a9c2d41b07",
        name="web1-eth0-1-f3a9c2d41b07.pcap",
        media_type="application/gzip",
        tags=tags,
        content=NoContent(),
        options={"s3": options, "other": {"field": "of another destination"}},
        labels=LABELS,
        node="web 1",
        started=1_795_316_300.5,
    )
    return make_entry(artifact, "s3", size=40, sha256="0" * 64, created=1_795_316_400.104, problem="503")


class SpoolEntryTests(unittest.SynchronousTestCase):
    """From an entry to its manifest, and back."""

    def changed(self, **changes: Any) -> bytes:
        """A manifest with some keys changed, or left out if they are L{None}."""
        document = {**json.loads(encode_entry(entry())), **changes}
        return json.dumps({key: value for key, value in document.items() if value is not None}).encode()

    def test_earlier(self) -> None:
        """A manifest without the node and the time of the capture's beginning is of an earlier version."""
        artifact = decode_entry(self.changed(node=None, started=None)).artifact(NoContent())
        self.assertEqual((artifact.node, artifact.started), (None, None))
        artifact = decode_entry(encode_entry(entry())).artifact(NoContent())
        self.assertEqual((artifact.node, artifact.started), ("web 1", 1_795_316_300.5))

    def test_back(self) -> None:
        """What is read is what was written, and gives the same artifact."""
        for one in (entry(), entry(bucket="b-1", encryption=True), entry(tags="")):
            self.assertEqual(decode_entry(encode_entry(one)), one)
        artifact = decode_entry(encode_entry(entry(folder="x"))).artifact(NoContent())
        self.assertEqual(
            (artifact.capture_id, artifact.name, artifact.media_type, artifact.tags, artifact.options),
            (
                "f3a9c2d41b07",
                "web1-eth0-1-f3a9c2d41b07.pcap",
                "application/gzip",
                "customer:Zoë",
                {"s3": {"folder": "x"}},
            ),
        )

    @given(st.text(st.characters(exclude_categories=("Cc", "Cf", "Zl", "Zp"))))
    def test_any_tags(self, tags: str) -> None:
        """Any line of text can be a tag; what UTF-8 can't encode is replaced."""
        self.assertEqual(
            decode_entry(encode_entry(entry(tags))).tags, tags.encode("utf-8", "replace").decode("utf-8")
        )

    def test_any_problem(self) -> None:
        """A problem is one line in the log, whatever a destination or a manifest says."""
        artifact = entry().artifact(NoContent())
        told = make_entry(
            artifact, "s3", size=1, sha256="", created=0, problem="a\r\nb\x1b[2J" + "c" * 100_000
        )
        for one in (told, decode_entry(self.changed(problem="a\r\nb\x1b[2J" + "c" * 5_000))):
            self.assertEqual(one.problem[:9], "a b [2Jcc")
            self.assertLess(len(one.problem), 1100)

    def test_tags_of_lines(self) -> None:
        """Tags are made one line if they aren't, as they become the value of a header."""
        self.assertEqual(decode_entry(self.changed(tags="x\r\nHeader: y  z")).tags, "x Header: y z")
        self.assertEqual(len(decode_entry(self.changed(tags="x" * 10_000)).tags), 8193)

    def test_options(self) -> None:
        """Options of any destination are read as they were written."""
        for one in (
            entry(bucket="b.c-d", folder="x/y", acl="private", region="eu-1", encryption=False),
            entry(endpoint="http://[::1]:9000"),
            entry(recipients=["a@example.org", "b@example.org"], priority=7, share=0.5),
        ):
            self.assertEqual(decode_entry(encode_entry(one)), one)
        self.assertEqual(decode_entry(encode_entry(entry(parts=("a", "b")))).options, {"parts": ["a", "b"]})

    def test_labels(self) -> None:
        """The labels of the request are read as they were written."""
        self.assertEqual(decode_entry(encode_entry(entry())).artifact(NoContent()).labels, LABELS)

    def test_any_labels(self) -> None:
        """No capture is lost because of a label: each is made one line, shortened, and ignored if unknown."""
        labels = {"via": "a\r\nb", "alertid": "x" * 4000, "customer": 5, "colour": "red"}
        read = decode_entry(self.changed(labels=labels)).artifact(NoContent()).labels
        self.assertEqual((read.via, read.customer), ("a b", None))
        self.assertLess(len(str(read.alertid)), 1100)

    def test_not_written(self) -> None:
        """What could not be read again is not written."""
        for one, words in (
            (entry(bucket=None), "$.options"),
            (entry(nested={"a": {}}), "$.options"),
            (entry(text="x" * 5000), "$.options"),
            (entry(**{f"field{number}": "x" * 4000 for number in range(20)}), "is longer than 65536 bytes"),
        ):
            self.assertIn(words, str(self.assertRaises(SpoolError, encode_entry, one)))

    def test_version_1(self) -> None:
        """A manifest of version 1 is read: what it says of S3 becomes S3's options, and the file is pcap."""
        read = decode_entry(MANIFEST_1)
        artifact = read.artifact(NoContent())
        self.assertEqual(artifact.media_type, "application/vnd.tcpdump.pcap")
        self.assertEqual(
            artifact.options, {"s3": {"bucket": "captures-eu", "folder": "web/1", "encryption": False}}
        )
        self.assertEqual(artifact.labels, Labels(via=None))
        self.assertEqual((artifact.capture_id, artifact.tags[:12]), ("f3a9c2d41b07", "customer:Zoë"))
        self.assertEqual((read.size, read.created, read.destination), (12, 1_795_316_400.104, "s3"))
        self.assertEqual(decode_entry(encode_entry(read)), read)

    def test_version_1_of_another_destination(self) -> None:
        """There, what is said of S3 is in every manifest, but has no effect on other destinations."""
        manifest = json.dumps({**json.loads(MANIFEST_1), "destination": "cloudshark"}).encode()
        self.assertEqual(decode_entry(manifest).artifact(NoContent()).options, {})

    def test_problems_of_version_1(self) -> None:
        """A manifest of version 1 is checked as strictly."""
        for changes, words in (
            ({"name": "../../etc/passwd"}, "$.name"),
            *(({"name": name}, "$.name") for name in FOREIGN_NAMES),
            ({"s3": {"bucket": {"a": "b"}}}, "$.s3"),
            ({"s3": None}, "$.s3"),
            ({"size": 0}, "$.size"),
        ):
            manifest = json.dumps({**json.loads(MANIFEST_1), **changes}).encode()
            self.assertIn(words, str(self.assertRaises(SpoolError, decode_entry, manifest)))

    def test_age(self) -> None:
        """The age is known if both clocks may have been right."""
        self.assertEqual(entry().age(1_795_316_400.104 + 60), 60)
        self.assertEqual(entry().age(100), 0)
        self.assertEqual(decode_entry(self.changed(created=100)).age(1_795_316_400), 0)

    def test_name(self) -> None:
        """The names of entries are sorted by age, and differ from other names."""
        self.assertEqual(entry().entry_name, "1795316400104-f3a9c2d41b07-s3")
        self.assertTrue(is_entry_name(entry().entry_name))
        for name in (".new-1795316400104-a-s3", "lost+found", "lock", "1795316400104-a", "../1-a-s3", ""):
            self.assertFalse(is_entry_name(name), name)

    def test_readable(self) -> None:
        """A manifest is JSON of several lines, for people."""
        manifest = encode_entry(entry())
        self.assertEqual(json.loads(manifest)["destination"], "s3")
        self.assertGreater(manifest.count(b"\n"), 10)

    def test_problems(self) -> None:
        """What is not a manifest is rejected, in clear words."""
        for manifest, words in (
            (b"", "is not JSON"),
            (encode_entry(entry())[:-5], "is not JSON"),
            (bytes(500), "is not JSON"),
            (b"\xff", "is not JSON"),
            (b"[" * 60_000, "is not JSON"),
            (b" " * 70_000, "is longer than 65536 bytes"),
            (b"[]", "is not a pcapsvc manifest"),
            (b"{}", "has the unknown version null; the latest known is 2"),
            (self.changed(v=3), "has the unknown version 3; the latest known is 2"),
            (self.changed(tags=None), "missing required field `tags`"),
            (self.changed(name="../../etc/passwd"), "$.name"),
            (self.changed(name=".hidden"), "$.name"),
            *((self.changed(name=name), "$.name") for name in FOREIGN_NAMES),
            (self.changed(capture="a/b"), "$.capture"),
            (self.changed(size=0), "$.size"),
            (self.changed(sha256="xyz"), "$.sha256"),
            (self.changed(created="now"), "$.created"),
            (self.changed(media_type="text/html\r\nX: y"), "$.media_type"),
            (self.changed(media_type="gzip"), "$.media_type"),
            (self.changed(labels=None), "missing required field `labels`"),
            (self.changed(labels={"via": ["b"]}), "$.labels"),
            (self.changed(labels={f"k{number}": "b" for number in range(17)}), "$.labels"),
            (self.changed(options=["b"]), "$.options"),
            (self.changed(options={"bucket": {"b": "c"}}), "$.options"),
            (self.changed(options={"bucket": [["b"]]}), "$.options"),
            (self.changed(options={"bucket": ["b"] * 300}), "$.options"),
            (self.changed(options={"bucket": "b" * 5000}), "$.options"),
            (self.changed(options={"": "b"}), "$.options"),
            (self.changed(options={"k" * 65: "b"}), "$.options"),
            (self.changed(options={f"k{number}": "b" for number in range(65)}), "$.options"),
        ):
            error = self.assertRaises(SpoolError, decode_entry, manifest)
            self.assertIn(words, str(error))

    @given(st.binary(max_size=300))
    def test_anything(self, manifest: bytes) -> None:
        """Whatever is there, it is an entry or the error."""
        try:
            decode_entry(manifest)
        except SpoolError:
            pass
