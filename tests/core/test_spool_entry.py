"""The manifest of a capture in the spool."""

from __future__ import annotations

import io
import json
from typing import Any, BinaryIO

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial import unittest

from pcapsvc.core.artifact import Artifact
from pcapsvc.core.errors import SpoolError
from pcapsvc.core.labels import Labels
from pcapsvc.core.spool_entry import SpoolEntry, decode_entry, encode_entry, is_entry_name, make_entry


class NoContent:
    """No bytes at all."""

    size = 0

    def open(self) -> BinaryIO:
        return io.BytesIO()

    def close(self) -> None:
        pass


def entry(tags: str = "customer:Zoë", **s3: Any) -> SpoolEntry:
    """An entry of a capture for S3."""
    artifact = Artifact(
        capture_id="f3a9c2d41b07",
        name="web1-eth0-1-f3a9c2d41b07.pcap",
        tags=tags,
        content=NoContent(),
        s3=s3,
        labels=Labels(via="test"),
    )
    return make_entry(artifact, "s3", size=40, sha256="0" * 64, created=1_795_316_400.104, problem="503")


class SpoolEntryTests(unittest.SynchronousTestCase):
    """From an entry to its manifest, and back."""

    def changed(self, **changes: Any) -> bytes:
        """A manifest with some keys changed, or left out where they are L{None}."""
        document = {**json.loads(encode_entry(entry())), **changes}
        return json.dumps({key: value for key, value in document.items() if value is not None}).encode()

    def test_back(self) -> None:
        """What is read is what was written, and makes the same artifact."""
        for one in (entry(), entry(bucket="b-1", encryption=True), entry(tags="")):
            self.assertEqual(decode_entry(encode_entry(one)), one)
        artifact = decode_entry(encode_entry(entry(folder="x"))).artifact(NoContent())
        self.assertEqual(
            (artifact.capture_id, artifact.name, artifact.tags, artifact.s3),
            ("f3a9c2d41b07", "web1-eth0-1-f3a9c2d41b07.pcap", "customer:Zoë", {"folder": "x"}),
        )

    @given(st.text(st.characters(exclude_categories=("Cc", "Cf", "Zl", "Zp"))))
    def test_any_tags(self, tags: str) -> None:
        """Any line of text can be a tag; what UTF-8 has no bytes for is replaced."""
        self.assertEqual(
            decode_entry(encode_entry(entry(tags))).tags, tags.encode("utf-8", "replace").decode("utf-8")
        )

    def test_any_problem(self) -> None:
        """A problem is a line in the log, whatever a destination or a manifest says."""
        artifact = entry().artifact(NoContent())
        told = make_entry(
            artifact, "s3", size=1, sha256="", created=0, problem="a\r\nb\x1b[2J" + "c" * 100_000
        )
        for one in (told, decode_entry(self.changed(problem="a\r\nb\x1b[2J" + "c" * 5_000))):
            self.assertEqual(one.problem[:9], "a b [2Jcc")
            self.assertLess(len(one.problem), 1100)

    def test_tags_of_lines(self) -> None:
        """Tags are made one line where they aren't, as they become a header's value."""
        self.assertEqual(decode_entry(self.changed(tags="x\r\nHeader: y  z")).tags, "x Header: y z")
        self.assertEqual(len(decode_entry(self.changed(tags="x" * 10_000)).tags), 8193)

    def test_s3(self) -> None:
        """All that a request may say of S3 is read as it was written."""
        for one in (
            entry(bucket="b.c-d", folder="x/y", acl="private", region="eu-1", encryption=False),
            entry(endpoint="s3.example.org"),
            entry(endpoint="http://[::1]:9000"),
        ):
            self.assertEqual(decode_entry(encode_entry(one)), one)

    def test_age(self) -> None:
        """An age is told where both clocks can have been right."""
        self.assertEqual(entry().age(1_795_316_400.104 + 60), 60)
        self.assertEqual(entry().age(100), 0)
        self.assertEqual(decode_entry(self.changed(created=100)).age(1_795_316_400), 0)

    def test_name(self) -> None:
        """An entry's name is sorted by age, and is told from other names."""
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
        """What is no manifest is refused, in clear words."""
        for manifest, words in (
            (b"", "is no JSON"),
            (encode_entry(entry())[:-5], "is no JSON"),
            (bytes(500), "is no JSON"),
            (b"\xff", "is no JSON"),
            (b"[" * 60_000, "is no JSON"),
            (b" " * 70_000, "is longer than 65536 bytes"),
            (b"[]", "is no manifest of ours"),
            (b"{}", "has the version None, and 1 is the only one known here"),
            (self.changed(v=2), "has the version 2, and 1 is the only one known here"),
            (self.changed(tags=None), "missing required field `tags`"),
            (self.changed(name="../../etc/passwd"), "$.name"),
            (self.changed(name=".hidden"), "$.name"),
            (self.changed(capture="a/b"), "$.capture"),
            (self.changed(size=0), "$.size"),
            (self.changed(sha256="xyz"), "$.sha256"),
            (self.changed(created="now"), "$.created"),
            (self.changed(s3={"bucket": ["b"]}), "$.s3"),
            (self.changed(s3={"key": "b"}), "says of S3: key: is not a known key"),
            (self.changed(s3={"bpf": "b"}), "says of S3: bpf: is not a known key"),
            (
                self.changed(s3={"bucket": "../../evil"}),
                "bucket = '../../evil': must be the name of a bucket",
            ),
            (self.changed(s3={"folder": "../../../etc"}), "folder = '../../../etc': must be a path"),
            (self.changed(s3={"folder": True}), "folder = True: must be a path"),
            (self.changed(s3={"encryption": "no"}), "encryption = 'no': must be true or false"),
            (self.changed(s3={"acl": "all"}), "acl = 'all': must be one of"),
            (self.changed(s3={"region": "x.evil"}), "region = 'x.evil': must be the name of a region"),
            (self.changed(s3={"endpoint": "http://evil/?x="}), "endpoint = 'http://evil/?x=': must be HOST"),
            (self.changed(s3={"endpoint": True}), "endpoint = True: must be one line of text"),
        ):
            error = self.assertRaises(SpoolError, decode_entry, manifest)
            self.assertIn(words, str(error))

    @given(st.binary(max_size=300))
    def test_anything(self, manifest: bytes) -> None:
        """Whatever stands there, it is an entry or the error."""
        try:
            decode_entry(manifest)
        except SpoolError:
            pass
