"""How much batches of Kafka records may decompress to."""

from __future__ import annotations

from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from twisted.trial import unittest

from pcapsvc.sources.kafka import decompress
from pcapsvc.sources.kafka.decompress import MAX_BATCH_BYTES

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


class DecompressTests(unittest.SynchronousTestCase):
    """L{decompress.bound} limits what kafka-python makes of a batch."""

    def setUp(self) -> None:
        decompress.bound()
        decompress.skipped.take()

    def test_usual(self) -> None:
        """Batches of every codec are read as before."""
        values = [b"one", b"two" * 1000, bytes(MAX_BATCH_BYTES // 2)]
        for name, codec in _CODECS.items():
            found = [record.value for record in batch(codec, *values)]
            self.assertEqual([bytes(value) for value in found], values, name)
        self.assertEqual(decompress.skipped.take(), 0)

    def test_too_long(self) -> None:
        """A batch that becomes too long is empty, and counted."""
        for name, codec in _CODECS.items():
            received = batch(codec, b"one", bytes(MAX_BATCH_BYTES))
            self.assertEqual(list(received), [], name)
            self.assertEqual(received.next_offset, 2)
            self.assertEqual(decompress.skipped.take(), 1, name)

    def test_again(self) -> None:
        """To bound it twice changes nothing."""
        decompress.bound()
        self.assertEqual(len(list(batch(_CODECS["gzip"], b"one"))), 1)
