"""How much batches of Kafka records may decompress to."""

from __future__ import annotations

import time

from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from kafka.record.util import encode_varint
from twisted.trial import unittest

from pcapsvc.bounded import kafka_batches
from pcapsvc.bounded.kafka_batches import MAX_BATCH_BYTES

_CODECS = {
    "gzip": DefaultRecordBatch.CODEC_GZIP,
    "snappy": DefaultRecordBatch.CODEC_SNAPPY,
    "lz4": DefaultRecordBatch.CODEC_LZ4,
    "zstd": DefaultRecordBatch.CODEC_ZSTD,
}


def batch(codec: int, *values: bytes) -> DefaultRecordBatch:
    """A batch of records, as it is received."""
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=codec,
        is_transactional=False,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=1 << 30,
    )
    for offset, value in enumerate(values):
        builder.append(offset, timestamp=1, key=None, value=value, headers=[])
    return DefaultRecordBatch(bytes(builder.build()))


def varint(number: int) -> bytes:
    """A number in a record."""
    encoded = bytearray()
    encode_varint(number, encoded.append)
    return bytes(encoded)


def record(value: bytes, headers: int, *, surplus: int = 0, key: bytes = b"key") -> bytes:
    """
    A record with a number of empty headers.

    @param surplus: how much longer it is than it says.
    """
    fields = b"\0" + varint(0) + varint(0) + varint(len(key)) + key + varint(len(value)) + value
    content = fields + varint(headers) + b"\0\0" * headers
    return varint(len(content) - surplus) + content


def batch_of(*records: bytes, control: bool = False) -> DefaultRecordBatch:
    """A compressed batch of records that are encoded already."""
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=_CODECS["zstd"],
        is_transactional=False,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=1 << 30,
    )
    for offset in range(len(records)):
        builder.append(offset, timestamp=1, key=None, value=b"", headers=[])
    # There is no other way to have headers by the million.
    del builder._buffer[DefaultRecordBatch.HEADER_STRUCT.size :]
    builder._buffer += b"".join(records)
    encoded = bytearray(builder.build())
    if control:
        # The second of two bytes.
        encoded[DefaultRecordBatch.ATTRIBUTES_OFFSET + 1] |= DefaultRecordBatch.CONTROL_MASK
    return DefaultRecordBatch(bytes(encoded))


class DecompressTests(unittest.SynchronousTestCase):
    """L{kafka_batches.bound} limits what kafka-python makes of a batch."""

    def setUp(self) -> None:
        kafka_batches.bound()
        kafka_batches.skipped.take()

    def test_usual(self) -> None:
        """Batches of every codec are read as before."""
        values = [b"one", b"two" * 1000, bytes(MAX_BATCH_BYTES // 2)]
        for name, codec in _CODECS.items():
            found = [record.value for record in batch(codec, *values)]
            self.assertEqual([bytes(value) for value in found], values, name)
        self.assertEqual(kafka_batches.skipped.take(), 0)

    def test_too_long(self) -> None:
        """A batch that becomes too long is empty, and counted."""
        for name, codec in _CODECS.items():
            received = batch(codec, b"one", bytes(MAX_BATCH_BYTES))
            self.assertEqual(list(received), [], name)
            self.assertEqual(received.next_offset, 2)
            self.assertEqual(kafka_batches.skipped.take(), 1, name)

    def test_headers(self) -> None:
        """Headers are not read: a batch of some hundred bytes may have millions, and nobody needs them."""
        received = batch_of(record(b"one", 300_000), record(b"two", 0), record(b"", 3))
        self.assertLess(received.size_in_bytes, 5000)
        began = time.thread_time()
        found = [(bytes(each.value), each.key, each.headers) for each in received]
        self.assertEqual(found, [(b"one", b"key", []), (b"two", b"key", []), (b"", b"key", [])])
        self.assertLess(time.thread_time() - began, 0.1)

    def test_wrong_lengths(self) -> None:
        """A record that is not as long as it says is corrupt."""
        for headers, surplus in ((0, 2), (0, -1), (2, 20)):
            wrong = batch_of(record(b"one", headers, surplus=surplus))
            self.assertRaises(CorruptRecordError, list, wrong)
        self.assertRaises(CorruptRecordError, list, batch_of(record(b"one", 1)[:-9]))

    def test_control_records(self) -> None:
        """The records of transactions are read; those whose key is not theirs are corrupt."""
        received = batch_of(record(b"", 0), control=True)
        self.assertRaises(CorruptRecordError, list, received)
        received = batch_of(record(b"", 0, key=b"\0\0\0\1"), control=True)
        self.assertTrue(next(iter(received)).commit)

    def test_again(self) -> None:
        """To bound it twice changes nothing."""
        kafka_batches.bound()
        self.assertEqual(len(list(batch(_CODECS["gzip"], b"one"))), 1)
