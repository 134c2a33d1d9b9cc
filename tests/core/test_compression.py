"""What a destination gets, of what a request asks for."""

from __future__ import annotations

from twisted.trial import unittest

from pcapsvc.core.compression import (
    CHOICES,
    COMPRESSIONS,
    CompressionChoice,
    compression_warnings,
    compressions,
)


class ChoiceTests(unittest.SynchronousTestCase):
    """L{CompressionChoice}."""

    def test_default(self) -> None:
        """Without a word of the request, it is the destination's own; with one, it is that."""
        choice = CompressionChoice(usual="gzip")
        self.assertEqual(choice.of(None), "gzip")
        for asked in CHOICES:
            self.assertEqual(choice.of(asked), asked)

    def test_unreadable(self) -> None:
        """What the destination can't read is gzip instead, or nothing if it can't read that either."""
        self.assertEqual(CompressionChoice(readable=("gzip", "none")).of("zstd"), "gzip")
        self.assertEqual(CompressionChoice(readable=("none",)).of("zstd"), "none")
        self.assertEqual(CompressionChoice(readable=("none",)).of("gzip"), "none")

    def test_names(self) -> None:
        """The names of files end as their readers expect, and the media types are registered ones."""
        self.assertEqual(
            {(each.name, each.suffix, each.media_type) for each in COMPRESSIONS.values()},
            {("gzip", ".gz", "application/gzip"), ("zstd", ".zst", "application/zstd")},
        )
        self.assertEqual([*COMPRESSIONS], [each.name for each in COMPRESSIONS.values()])


class NodeTests(unittest.SynchronousTestCase):
    """All destinations of a node."""

    choices = {
        "a": CompressionChoice(),
        "b": CompressionChoice(usual="zstd"),
        "c": CompressionChoice(readable=("gzip", "none")),
        "d": CompressionChoice(readable=("none",)),
    }

    def test_each(self) -> None:
        """Each has its own."""
        self.assertEqual(
            compressions(None, self.choices), {"a": "none", "b": "zstd", "c": "none", "d": "none"}
        )
        self.assertEqual(
            compressions("zstd", self.choices), {"a": "zstd", "b": "zstd", "c": "gzip", "d": "none"}
        )

    def test_warnings(self) -> None:
        """The sender is told of those that get something else; of defaults, nothing is said."""
        self.assertEqual([*compression_warnings(None, self.choices)], [])
        self.assertEqual([*compression_warnings("none", self.choices)], [])
        self.assertEqual(
            [*map(str, compression_warnings("zstd", self.choices))],
            [
                'compress = "zstd": can\'t be read by c, which gets gzip',
                'compress = "zstd": can\'t be read by d, which gets an uncompressed file',
            ],
        )
