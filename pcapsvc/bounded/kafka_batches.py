"""
Decompresses batches of records, up to a limit.

kafka-python (version 3.0) decompresses a batch into memory whatever its size. Whoever may send to the topic
can make 1 MiB of zstd that becomes gigabytes.
"""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Callable
from threading import Lock
from typing import Any

import lz4.frame
import zstandard
from kafka import codec
from kafka.errors import CorruptRecordError
from kafka.record import default_records, legacy_records
from kafka.record.util import decode_varint

#: The longest that a batch may become. Brokers limit its compressed size, to 1 MiB by default.
MAX_BATCH_BYTES = 32 * 1024 * 1024

# The header of a stream of blocks, before the length of the first one (kafka.codec).
_XERIAL_HEADER_BYTES = 16


class TooLong(CorruptRecordError):  # type: ignore[misc] # kafka-python has no types
    """A batch becomes too long."""

    def __init__(self) -> None:
        super().__init__(f"a batch of records decompresses to more than {MAX_BATCH_BYTES} bytes")


class Skipped:
    """Counts batches that were skipped because they become too long, in any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._count = 0

    def add(self) -> None:
        """Count one."""
        with self._lock:
            self._count += 1

    def take(self) -> int:
        """How many there were since the last call."""
        with self._lock:
            count, self._count = self._count, 0
            return count


#: Those of this process.
skipped = Skipped()


def _gzip(payload: Any) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(payload)) as file:
        return _checked(file.read(MAX_BATCH_BYTES + 1))


def _zstd(payload: bytes) -> bytes:
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_BATCH_BYTES)
    with decompressor.stream_reader(io.BytesIO(payload), read_across_frames=True) as reader:
        return _checked(reader.read(MAX_BATCH_BYTES + 1))


def _lz4(payload: bytes) -> bytes:
    decompressor = lz4.frame.LZ4FrameDecompressor()
    found: bytes = decompressor.decompress(payload, max_length=MAX_BATCH_BYTES + 1)
    return _checked(found)


def _snappy(payload: bytes) -> bytes:
    total, at = 0, 0
    if codec._detect_xerial_stream(payload):
        at = _XERIAL_HEADER_BYTES
        while at + 4 <= len(payload):
            (length,) = struct.unpack_from("!I", payload, at)
            total += _announced(payload, at + 4)
            at += 4 + length
    else:
        total = _announced(payload, 0)
    if total > MAX_BATCH_BYTES:
        raise TooLong
    found: bytes = codec.snappy_decode(payload)
    return found


def _announced(block: bytes, at: int) -> int:
    """The length that a block of snappy begins with (Snappy compressed format description, section 1)."""
    length = 0
    for place, byte in enumerate(block[at : at + 5]):
        length |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            break
    return length


def _checked(found: bytes) -> bytes:
    if len(found) > MAX_BATCH_BYTES:
        raise TooLong
    return found


def _read_without_headers(batch: Any) -> Any:
    """
    The next record of a batch. Its headers, which nobody here uses, are left out: there may be millions, and
    kafka-python would refuse those that are not UTF-8 (Kafka documentation, "Record").
    """
    buffer = batch._buffer
    length, start = decode_varint(buffer, batch._pos)
    _, at = decode_varint(buffer, start)
    since_first, at = decode_varint(buffer, at)
    delta, at = decode_varint(buffer, at)
    key_length, at = decode_varint(buffer, at)
    key, at = _bytes(buffer, at, key_length)
    value_length, at = decode_varint(buffer, at)
    value, at = _bytes(buffer, at, value_length)
    end = start + length
    # There is at least the number of headers.
    if not at < end <= len(buffer):
        raise CorruptRecordError(f"a record says that it has {length} bytes, and has not")
    batch._pos = end
    appended = batch.timestamp_type == batch.LOG_APPEND_TIME
    timestamp = batch.max_timestamp if appended else batch.first_timestamp + since_first
    kind = default_records.ControlRecord if batch.is_control_batch else default_records.DefaultRecord
    try:
        return kind(length, batch.base_offset + delta, timestamp, batch.timestamp_type, key, value, [])
    except (struct.error, TypeError):
        raise CorruptRecordError("a control record has no valid key") from None


def _bytes(buffer: Any, at: int, length: int) -> tuple[bytes | None, int]:
    """A field with its length, which is negative if there is none; and where it ends."""
    return (None, at) if length < 0 else (bytes(buffer[at : at + length]), at + length)


def bound() -> None:
    """
    Have kafka-python decompress up to L{MAX_BATCH_BYTES}, and leave out headers. A longer batch is skipped
    and counted; in the formats of records before version 2, which came with Kafka 0.11, it counts as corrupt.
    """
    for module in (default_records, legacy_records):
        module.gzip_decode, module.snappy_decode, module.lz4_decode = _gzip, _snappy, _lz4
    default_records.zstd_decode = _zstd
    batch = default_records.DefaultRecordBatch
    if not hasattr(batch._maybe_uncompress, "is_bounded"):
        batch._maybe_uncompress = _or_skip(batch._maybe_uncompress)
        batch._read_msg = _read_without_headers


def _or_skip(decompress: Callable[[Any], None]) -> Callable[[Any], None]:
    def or_skip(batch: Any) -> None:
        try:
            decompress(batch)
        except TooLong:
            skipped.add()
            # An empty batch, as compaction leaves it: the consumer continues with the next one.
            batch._buffer, batch._pos, batch._num_records = bytearray(), 0, 0
            batch._decompressed = True

    or_skip.is_bounded = True  # type: ignore[attr-defined]
    return or_skip
