"""The parts of an upload."""

from __future__ import annotations

import hashlib
import io
import os
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.destinations.s3.multipart import MOST_PARTS, Part, Sizes, Upload, digest_of

MIB, GIB = 2**20, 2**30
# S3 User Guide, "Amazon S3 multipart upload limits".
LARGEST_OBJECT_BYTES, LARGEST_PART_BYTES, SMALLEST_PART_BYTES = 5 * 1024 * GIB, 5 * GIB, 5 * MIB


class _File(io.BytesIO):
    """A file that knows its size."""

    is_made = False

    @property
    def size(self) -> int:
        return len(self.getvalue())


class SizesTests(SynchronousTestCase):
    """Where parts begin and end."""

    def test_whole(self) -> None:
        """Parts follow each other without a gap, to the end; all but the last have the same size."""
        for size in (1, 99, 100, 101, 250, 1000):
            parts = [*Sizes(part_bytes=100).parts(size)]
            self.assertEqual([start for start, _ in parts], [*range(0, size, 100)])
            self.assertEqual(sum(length for _, length in parts), size)
            self.assertEqual({length for _, length in parts[:-1]} - {100}, set())

    def test_not_too_many(self) -> None:
        """
        Of a large file, parts are larger, as there may be 10,000: from 168 GB on, or 84 GB if they are held
        in memory. Those of the largest object that S3 accepts are far from the largest part.
        """
        for size, held, count, part_mib in (
            (160_000_000_000, False, 9_537, 16),
            (16 * MIB * MOST_PARTS, False, 10_000, 16),
            (16 * MIB * MOST_PARTS + 1, False, 9_412, 17),
            (8 * MIB * MOST_PARTS, True, 10_000, 8),
            (8 * MIB * MOST_PARTS + 1, True, 8_889, 9),
            (17 * MIB * MOST_PARTS, False, 10_000, 17),
            (17 * MIB * MOST_PARTS + 1, False, 9_445, 18),
            (LARGEST_OBJECT_BYTES, False, 9_987, 525),
            (LARGEST_OBJECT_BYTES, True, 9_987, 525),
        ):
            parts = [*Sizes().parts(size, held=held)]
            self.assertEqual((len(parts), parts[0][1]), (count, part_mib * MIB), size)
            self.assertEqual(sum(length for _, length in parts), size)
            self.assertEqual(parts[-1][0] + parts[-1][1], size)
            self.assertLessEqual(max(length for _, length in parts), LARGEST_PART_BYTES)
            self.assertGreaterEqual(parts[0][1], SMALLEST_PART_BYTES)

    def test_default(self) -> None:
        """The largest capture of the default configuration is put whole."""
        self.assertEqual(Sizes().single_bytes, 100_000_000)


class PartTests(SynchronousTestCase):
    """A part, as a file."""

    def test_like_a_file(self) -> None:
        """It can be read and positioned like a file of its own, and never shows what is beside it."""
        data = os.urandom(1000)
        for start, size in ((0, 300), (300, 300), (900, 100)):
            part, plain = Part(_File(data), start, size), io.BytesIO(data[start : start + size])
            self.assertEqual(len(part), size)
            for offset, whence in ((0, 0), (50, 0), (size, 0), (size - 10, 0), (-20, 2), (0, 2), (-5, 1)):
                self.assertEqual(part.seek(offset, whence), plain.seek(offset, whence))
                for count in (7, 0, 10_000, -1):
                    self.assertEqual(part.read(count), plain.read(count))
                    self.assertEqual(part.tell(), plain.tell())
            self.assertEqual(digest_of(part, 64), hashlib.md5(plain.getvalue()).digest())


class _Service:
    """
    What an upload in parts needs of a client of boto3.

    @ivar parts: what has arrived, by number.
    @ivar tag: the C{ETag} of the object, once it is complete.
    """

    def __init__(self) -> None:
        self.parts: dict[int, bytes] = {}
        self.tag: str | None = None

    def create_multipart_upload(self, **_: Any) -> dict[str, Any]:
        return {"UploadId": "u"}

    def upload_part(self, *, PartNumber: int, Body: Part, ContentLength: int, **_: Any) -> dict[str, Any]:
        data = Body.read()
        assert len(data) == ContentLength
        self.parts[PartNumber] = data
        return {"ETag": f'"{hashlib.md5(data).hexdigest()}"'}

    def complete_multipart_upload(self, *, MultipartUpload: dict[str, Any], **_: Any) -> dict[str, Any]:
        tags = [part["ETag"].strip('"') for part in MultipartUpload["Parts"]]
        assert [part["PartNumber"] for part in MultipartUpload["Parts"]] == [*range(1, len(tags) + 1)]
        self.tag = f"{hashlib.md5(bytes.fromhex(''.join(tags))).hexdigest()}-{len(tags)}"
        return {"ETag": f'"{self.tag}"'}


class UploadTests(SynchronousTestCase):
    """An upload, as the service sees it."""

    def test_most_parts(self) -> None:
        """As many parts as there may be: all of them arrive in order, and are proven to be there."""
        data, service, renewed = os.urandom(MOST_PARTS * 10 - 3), _Service(), []
        sizes = Sizes(part_bytes=10)

        def ask() -> dict[str, Any]:
            return {"ETag": f'"{service.tag}"', "ContentLength": len(data)}

        upload = Upload(service, {}, _File(data), sizes, lambda: renewed.append(None))
        upload.store({}, ask)
        self.assertIsNone(upload.id)
        self.assertEqual(max(service.parts), MOST_PARTS)
        self.assertEqual(b"".join(service.parts.values()), data)
        # One exchange for each request: an answer may not be long, but there are many.
        self.assertEqual(len(renewed), MOST_PARTS + 2)
        self.assertTrue(upload.is_there(ask))
