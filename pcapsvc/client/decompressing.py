"""
Files as they were before they were compressed.

Once a capture is not in a node's memory any more, its API answers with the file that was delivered, which may
be compressed.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Protocol

from pcapsvc.client.status import ClientError
from pcapsvc.core.compression import COMPRESSIONS

# How much is read, and what comes out of it at once, in bytes.
_CHUNK_BYTES = 256 * 1024
# The same for zstd, which doesn't stop in between: four bytes may become 128 KiB (RFC 8878, section 3.1.1.2).
_ZSTD_BYTES = 1024
# A gzip member (zlib's manual, inflateInit2).
_GZIP_WINDOW = 16 + zlib.MAX_WBITS


class _Body(Protocol):
    def read(self, most: int | None = None) -> bytes: ...


def decompressed(body: _Body, media_type: str) -> Iterator[bytes]:
    """
    The bytes of a file, piece by piece, decompressed if its media type says that it is compressed.

    @raise ClientError: if it is damaged.
    """
    kind = media_type.partition(";")[0].strip().lower()
    if kind == COMPRESSIONS["gzip"].media_type:
        return _gzip(body)
    if kind == COMPRESSIONS["zstd"].media_type:
        return _zstd(body)
    return iter(lambda: body.read(_CHUNK_BYTES), b"")


def _gzip(body: _Body) -> Iterator[bytes]:
    try:
        inflating = zlib.decompressobj(_GZIP_WINDOW)
        while data := body.read(_CHUNK_BYTES):
            while data:
                if piece := inflating.decompress(data, _CHUNK_BYTES):
                    yield piece
                data = inflating.unconsumed_tail
        # What zlib still holds back.
        while piece := inflating.decompress(b"", _CHUNK_BYTES):
            yield piece
    except zlib.error as problem:
        raise ClientError(f"the file is damaged: {problem}") from None
    if not inflating.eof:
        raise ClientError("the file is damaged: it ends too early")


def _zstd(body: _Body) -> Iterator[bytes]:
    # Imported here: it is seldom needed.
    import zstandard

    try:
        inflating = zstandard.ZstdDecompressor().decompressobj()
        while data := body.read(_CHUNK_BYTES):
            for start in range(0, len(data), _ZSTD_BYTES):
                if piece := inflating.decompress(data[start : start + _ZSTD_BYTES]):
                    yield piece
        if not inflating.eof:
            raise ClientError("the file is damaged: it ends too early")
    except zstandard.ZstdError as problem:
        raise ClientError(f"the file is damaged: {problem}") from None
