"""What a request may say of the form of its files."""

from __future__ import annotations

from msgspec.structs import replace
from twisted.trial import unittest

from tests.core.test_request import BOUNDS, Requests, message


class FormTests(Requests, unittest.SynchronousTestCase):
    """Format and compression."""

    def test_formats(self) -> None:
        """The format is one that the node has; if that isn't known, it is a word."""
        self.assertEqual(self.parse(message(format="pcap")).format, "pcap")
        self.assertEqual(self.parse(message(format="pcapxyz")).format, "pcapxyz")
        self.assertIn("format", self.problems(message(format="../pcap")))
        bounds = replace(BOUNDS, formats=("pcap", "pcapng"))
        self.assertEqual(self.parse(message(format="pcapng"), bounds).format, "pcapng")
        self.assertEqual(
            self.problems(message(format="pcapxyz"), bounds),
            {"format": "must be one of pcap, pcapng on this node"},
        )
        self.assertIsNone(self.parse(message(format="")).format)

    def test_compressions(self) -> None:
        """A file may be compressed in two ways, or not at all."""
        for compress in ("gzip", "zstd", "none"):
            self.assertEqual(self.parse(message(compress=compress)).compress, compress)
        for nothing in ("", None):
            self.assertIsNone(self.parse(message(compress=nothing)).compress)
        for wrong in ("xz", "GZIP", True, 1, ["gzip"]):
            self.assertEqual(
                self.problems(message(compress=wrong)), {"compress": "must be one of gzip, zstd, none"}
            )
