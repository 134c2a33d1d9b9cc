"""The Kafka source and a real broker."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path
from typing import Any, Self

from kafka.errors import SaslAuthenticationFailedError
from twisted.internet import threads

from pcapsvc.bounded.kafka_batches import MAX_BATCH_BYTES
from pcapsvc.net.kafka.security import KafkaSecurity
from pcapsvc.sources.kafka.connection import Connection
from peers.certificates import LABELS, Authority, labelled
from tests.integration.kafka_case import KafkaTestCase

shared_peer = "Kafka broker"

#: How fast requests are sent in a stream.
A_SECOND = 150


class KafkaSourceTests(KafkaTestCase):
    """Which source reads which messages, and where it starts."""

    async def test_every_node_reads_every_message(self) -> None:
        """Without a group, each source reads all partitions, and nothing that was sent before it started."""
        self.broker.create_topic(self.topic, 3)
        await self.produce(*[b"before %d" % number for number in range(9)])
        _, one = await self.listen()
        _, other = await self.listen()
        sent = [b"%d" % number for number in range(30)]
        began = time.time()
        await self.produce(*sent)
        await self.until(lambda: len(self.bodies(one, other)) >= 60)
        for sink in (one, other):
            self.assertEqual(sorted(sent), sorted(self.bodies(sink)))
            self.assertEqual({"kafka"}, {source for source, _ in sink.submitted})
            for sent_at in sink.sent_at:
                assert sent_at is not None
                self.assertLess(abs(sent_at - began), 20)

    async def test_bombs(self) -> None:
        """A message that decompresses to too much is skipped and logged, whatever compressed it."""
        self.broker.create_topic(self.topic, 1)
        _, sink = await self.listen()
        expected: list[bytes] = []

        def send(compression: str) -> None:
            producer = self.broker.producer(compression_type=compression, max_request_size=1 << 30)
            try:
                producer.send(self.topic, bytes(MAX_BATCH_BYTES + 1), partition=0).get(180)
            finally:
                producer.close(60)

        for compression in ("gzip", "zstd", "lz4"):
            self.lines.clear()
            expected += [compression.encode(), b"after"]
            await self.produce(compression.encode())
            await threads.deferToThread(send, compression)
            await self.produce(b"after")
            while len(sink.submitted) < len(expected):
                await self.sleep(0.02)
            self.assertEqual(self.bodies(sink), expected)
            await self.until(lambda: len(self.logged("skipped 1 batches that decompress to too much")) == 1)

    async def test_partitions_added_later(self) -> None:
        """A partition that was just added is read from its first message on."""
        self.broker.create_topic(self.topic, 1)
        _, sink = await self.listen()
        self.broker.add_partitions(self.topic, 3)
        for partition in range(3):
            # The sender's clock may be behind by more than the source has been listening.
            await self.produce_behind(b"first of %d" % partition, 60, partition)
            await self.produce(b"second of %d" % partition, partition=partition)
        await self.until(lambda: len(sink.submitted) >= 6)
        expected = [word + b" of %d" % partition for word in (b"first", b"second") for partition in range(3)]
        self.assertEqual(sorted(expected), sorted(self.bodies(sink)))

    async def test_a_group_shares(self) -> None:
        """Each message reaches one node of a group, also those that were sent while all nodes were down."""
        self.broker.create_topic(self.topic, 4)
        source, one = await self.listen(group="sharing")
        other_source, other = await self.listen(group="sharing")
        sent: list[bytes] = []

        async def send(count: int) -> None:
            new = [b"%d" % number for number in range(len(sent), len(sent) + count)]
            sent.extend(new)
            await self.produce(*new)
            await self.until(lambda: len(self.bodies(one, other)) >= len(sent))

        deadline = time.monotonic() + 60
        while not (one.submitted and other.submitted):
            self.assertLess(time.monotonic(), deadline, "the group was never divided")
            await send(20)
        self.assertEqual(sorted(sent), sorted(self.bodies(one, other)))
        await self.stop(source)
        await self.stop(other_source)
        await self.produce(b"while away")
        _, third = await self.listen(group="sharing")
        await self.until(lambda: third.submitted)
        self.assertEqual([b"while away"], self.bodies(third))

    async def test_a_group_that_is_stopped_in_a_stream(self) -> None:
        """A node of a group is stopped and started again while messages flow: none is lost."""
        self.broker.create_topic(self.topic)
        producer = await threads.deferToThread(self.broker.producer)
        self.addCleanup(threads.deferToThread, producer.close, 5)
        sent: list[bytes] = []
        is_over = threading.Event()

        def send() -> None:
            while not is_over.is_set():
                sent.append(b"%d" % len(sent))
                producer.send(self.topic, sent[-1])
                time.sleep(1 / A_SECOND)
            producer.flush(30)

        source, sink = await self.listen(group="restarting")
        sinks = [sink]
        sending = threads.deferToThread(send)
        try:
            for _ in range(4):
                await self.until(lambda sink=sink: len(sink.submitted) > 20)
                await self.stop(source)
                source, sink = await self.listen(group="restarting")
                sinks.append(sink)
        finally:
            is_over.set()
            await sending
        await self.until(lambda: sent[-1] in self.bodies(*sinks))
        self.assertEqual(set(), set(sent) - set(self.bodies(*sinks)))

    async def test_a_missing_topic(self) -> None:
        """A missing topic is logged, waited for, and not created, although the broker would create it."""
        source, sink = self.source()
        source.startService()
        await self.until(lambda: self.logged("does not exist"))
        await self.sleep(1.5)
        self.assertEqual(1, len(self.lines), self.lines)
        self.assertNotIn(self.topic, self.broker.topics())
        self.broker.create_topic(self.topic)
        await self.produce(b"at once")
        await self.until(lambda: sink.submitted)
        self.assertEqual([b"at once"], self.bodies(sink))

    async def test_a_topic_created_again(self) -> None:
        """A topic that is deleted and created again is read from its first message on."""
        self.broker.create_topic(self.topic)
        _, sink = await self.listen()
        await self.produce(b"old")
        await self.until(lambda: sink.submitted)
        self.broker.delete_topic(self.topic)
        await self.until(lambda: self.logged("does not exist"))
        self.broker.create_topic(self.topic)
        await self.produce_behind(b"new", 60)
        await self.until(lambda: len(sink.submitted) > 1)
        self.assertEqual([b"old", b"new"], self.bodies(sink))

    async def test_a_codec_that_is_missing(self) -> None:
        """Messages that are compressed by a missing codec are logged and skipped."""
        self.broker.create_topic(self.topic, 1, compression_type="zstd")
        _, sink = await self.listen()
        await self.produce(b"compressed")
        await self.until(lambda: sink.submitted or self.logged("can't be read"))
        if not sink.submitted:
            self.assertIn("error: ", self.logged("partition 0 contains unreadable records")[0])


class _Corked:
    """
    A proxy that sends a server's last data and the end of the connection in one segment (C{TCP_CORK},
    tcp(7)).

    @ivar server: C{HOST:PORT}.
    """

    def __init__(self, server: str) -> None:
        host, _, port = server.rpartition(":")
        self._to = host, int(port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.server = f"localhost:{self._listening.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *why: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        # Until the port is closed.
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
                server = socket.create_connection(self._to)
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._copy, args=pair, daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


class SecureTests(KafkaTestCase):
    """Authentication and TLS, on SASL_SSL."""

    def setUp(self) -> None:
        super().setUp()
        self.broker.create_topic(self.topic)

    async def _reads(self, **changed: Any) -> None:
        security = self.broker.security(**changed)
        _, sink = await self.listen(servers=[self.broker.secure_server], security=security)
        await self.produce(b"secret")
        await self.until(lambda: sink.submitted)
        self.assertEqual([b"secret"], self.bodies(sink))

    async def _logs(self, words: str, **options: Any) -> None:
        source, _ = self.source(servers=[self.broker.secure_server], **options)
        source.startService()
        await self.until(lambda: self.lines)
        await self.sleep(1.5)
        self.assertEqual(1, len(self.lines), self.lines)
        self.assertIn(words, self.lines[0])
        self.assertNotIn("hunter2", self.lines[0])

    async def test_plain(self) -> None:
        """PLAIN works."""
        await self._reads(sasl_mechanism="PLAIN")

    async def test_scram_256(self) -> None:
        """SCRAM-SHA-256 works."""
        await self._reads(sasl_mechanism="SCRAM-SHA-256")

    async def test_scram_512(self) -> None:
        """SCRAM-SHA-512 works."""
        await self._reads(sasl_mechanism="SCRAM-SHA-512")

    async def test_token(self) -> None:
        """OAUTHBEARER works with the file's token at the time of the connection."""
        file = Path(self.mktemp())
        file.write_text("hunter2\n")
        security = self.broker.security(sasl_mechanism="OAUTHBEARER", sasl_oauth_token_file=str(file))
        source, sink = self.source(servers=[self.broker.secure_server], security=security)
        source.startService()
        await self.until(lambda: self.logged("authentication failed"))
        file.write_text(self.broker.token() + "\n")
        await self.until(lambda: self.logged("reading topic"))
        await self.produce(b"token")
        await self.until(lambda: sink.submitted)
        self.assertEqual(2, len(self.lines), self.lines)

    async def test_wrong_password(self) -> None:
        """A wrong password is logged once, with each mechanism, and not shown."""
        for mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
            self.lines.clear()
            wrong = self.broker.security(sasl_mechanism=mechanism, sasl_plain_password="hunter2")
            await self._logs("authentication failed (wrong user name, password or token)", security=wrong)

    def test_refused_and_cut_off(self) -> None:
        """A refusal is reported as one, even if it comes together with the end of the connection."""
        wrong = self.broker.security(sasl_mechanism="PLAIN", sasl_plain_password="hunter2")
        with _Corked(self.broker.secure_server) as corked:
            connection = Connection(
                [corked.server],
                self.topic,
                group=None,
                client_id="test",
                security=wrong,
                bootstrap_seconds=60.0,
            )
            self.assertRaises(SaslAuthenticationFailedError, connection.open)

    async def test_labels(self) -> None:
        """The server is verified with a file whose certificates have any of their labels."""
        ca_file = self.broker.security().ssl_cafile
        assert ca_file is not None
        for label in LABELS:
            security = self.broker.security(ssl_cafile=str(labelled(Path(ca_file), label)))
            connection = Connection(
                [self.broker.secure_server], self.topic, group=None, client_id="test", security=security
            )
            await threads.deferToThread(connection.open)
            await threads.deferToThread(connection.close)

    async def test_wrong_authority(self) -> None:
        """A certificate of another CA is refused, which is logged."""
        directory = Path(self.mktemp())
        directory.mkdir()
        stranger = self.broker.security(ssl_cafile=str(Authority(directory, "stranger").file))
        await self._logs("TLS failed", security=stranger)

    async def test_without_tls(self) -> None:
        """A plain connection to a TLS port doesn't hang: it is logged."""
        await self._logs("do not answer properly", security=KafkaSecurity(), quick={"bootstrap_seconds": 0.5})
