"""
Captures that are larger than one PutObject should be: in parts (S3 User Guide, "Uploading and copying objects
using multipart upload").

Each part is read from the file while it is sent, so none is in memory. But each is read three times: for its
signature, to send it, and for the proof that it is there. If a file is made while it is read, to go back is
to make all that precedes once more: then a part, which is smaller, is held in memory.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import msgspec

from pcapsvc.destinations.s3.proof import Unproven, check_stored, entity_tag

# S3 User Guide, "Amazon S3 multipart upload limits".
MOST_PARTS = 10_000
_MIB = 1024 * 1024


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """
    When an upload has parts, and how large they are.

    @ivar single_bytes: the largest file that is put whole.
    @ivar part_bytes: of all parts but the last. They are larger if there would be more than L{MOST_PARTS}.
    @ivar held_part_bytes: likewise, of those that are held in memory.
    """

    single_bytes: int = 100_000_000
    part_bytes: int = 16 * _MIB
    held_part_bytes: int = 8 * _MIB

    def parts(self, size: int, *, held: bool = False) -> Iterator[tuple[int, int]]:
        """
        The beginning and the size of each part of a file of C{size} bytes.

        @param held: whether parts are held in memory.
        """
        least = -(-size // MOST_PARTS)
        usual = self.held_part_bytes if held else self.part_bytes
        step = usual if least <= usual else -(-least // _MIB) * _MIB
        return ((start, min(step, size - start)) for start in range(0, size, step))


class Seekable(Protocol):
    """
    What a file is read from.

    @ivar is_made: whether it is made while it is read.
    """

    size: int
    is_made: bool

    def read(self, size: int = -1) -> bytes: ...
    def seek(self, offset: int, whence: int = 0) -> int: ...


class Part:
    """
    A part of a file, as a file: boto3 measures it, reads it for its signature, and sends it.
    """

    def __init__(self, file: Seekable, start: int, size: int) -> None:
        self._file = file
        self._start = start
        self._size = size
        self._at = 0
        file.seek(start)

    def read(self, size: int = -1) -> bytes:
        left = self._size - self._at
        data = self._file.read(left if size is None or size < 0 else min(size, left))
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        base = {0: 0, 1: self._at, 2: self._size}[whence]
        self._at = min(max(0, base + offset), self._size)
        self._file.seek(self._start + self._at)
        return self._at

    def tell(self) -> int:
        return self._at

    def __len__(self) -> int:
        return self._size


class HeldPart(io.BytesIO):
    """A part of a file, in memory."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.size = len(data)
        self.is_made = False


def digest_of(part: Part, chunk_bytes: int = 256 * 1024) -> bytes:
    """The MD5 of a part."""
    digest = hashlib.md5(usedforsecurity=False)
    part.seek(0)
    while chunk := part.read(chunk_bytes):
        digest.update(chunk)
    return digest.digest()


class Upload:
    """
    One upload in parts.

    @param client: of boto3.
    @param where: the bucket and the key, as boto3's arguments.
    @param file: is only read by this meanwhile.
    @param renew: called before each request.
    @ivar id: of the upload, while it is neither complete nor aborted.
    """

    def __init__(
        self,
        client: Any,
        where: Mapping[str, str],
        file: Seekable,
        sizes: Sizes,
        renew: Callable[[], object],
    ) -> None:
        self._client = client
        self._where = where
        self._file = file
        self._sizes = sizes
        self._renew = renew
        self.id: str | None = None

    def is_there(self, ask: Callable[[], Mapping[str, Any]]) -> bool:
        """
        Whether an earlier upload was completed, of which there was no answer. An object that KMS encrypts
        isn't recognized.

        @param ask: returns the answer to a HeadObject.
        """
        self._renew()
        there = ask()
        if there.get("ContentLength") != self._file.size:
            return False
        return entity_tag(there) == self._tag([digest_of(part) for part in self._parts()])

    def store(self, options: Mapping[str, Any], ask: Callable[[], Mapping[str, Any]]) -> None:
        """
        Upload the file.

        @param options: of the object, as boto3's arguments.
        @param ask: as in L{check_stored}.

        @raise Unproven: if nothing proves that it is there.
        """
        self._renew()
        answer = self._client.create_multipart_upload(**self._where, **options)
        upload = answer.get("UploadId")
        if not upload:
            raise Unproven("the answer has no id of an upload in parts, so it is not S3's")
        self.id = upload
        sent, digests = [], []
        for number, part in enumerate(self._parts(), 1):
            self._renew()
            answer = self._client.upload_part(
                **self._where, UploadId=upload, PartNumber=number, Body=part, ContentLength=len(part)
            )
            tag, digest = entity_tag(answer), digest_of(part)
            if tag is None:
                raise Unproven(f"part {number} was answered without an ETag, so it is not S3's answer")
            digests.append(digest)
            sent.append({"PartNumber": number, "ETag": answer["ETag"]})
        self._renew()
        answer = self._client.complete_multipart_upload(
            **self._where, UploadId=upload, MultipartUpload={"Parts": sent}
        )
        self.id = None
        check_stored(answer, tag=self._tag(digests), size=self._file.size, ask=ask)

    def _parts(self) -> Iterator[Part]:
        is_made = self._file.is_made
        for start, size in self._sizes.parts(self._file.size, held=is_made):
            part = Part(self._file, start, size)
            yield Part(HeldPart(part.read(size)), 0, size) if is_made else part

    def _tag(self, digests: list[bytes]) -> str:
        """The C{ETag} of an object that has parts of these MD5s: undocumented, but the same everywhere."""
        whole = hashlib.md5(b"".join(digests), usedforsecurity=False).hexdigest()
        return f"{whole}-{len(digests)}"
