"""How pcapctl connects: with TLS, logins and unix sockets, to the real servers; and connects again."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.bounded.kafka_batches import MAX_BATCH_BYTES
from pcapsvc.client.address import read_address, read_api
from pcapsvc.client.api import NodeApi
from pcapsvc.client.credentials import Credentials
from pcapsvc.client.status import NoAnswer, Refused
from pcapsvc.client.transport import ITransport
from pcapsvc.client.transports.http import HttpTransport
from pcapsvc.client.transports.kafka import KafkaTransport
from pcapsvc.client.transports.redis import RedisTransport
from peers.kafka import shared_broker
from peers.process import OwnProcess
from peers.redis import RedisServer

shared_peer = "Kafka broker"

_PASSWORD = "hunter2 é hunter2"


class ConnectionsTests(SynchronousTestCase):
    """Messages arrive, and so do events."""

    timeout = 300

    def pass_on(self, transport: ITransport) -> None:
        """What is sent after the events were opened is among them."""
        stream = transport.events(None)
        try:
            events: Iterator[bytes] = iter(stream)
            for body in (b'{"a": 1}', b'{"b": "\xc3\xa9"}'):
                transport.send(body)
                self.assertEqual(next(events), body)
        finally:
            stream.close()

    def refused(self, transport: ITransport, words: str) -> None:
        """Neither works, and the error says why, without the password."""
        for call in (lambda: transport.send(b"{}"), lambda: transport.events(None)):
            error = self.assertRaises(NoAnswer, call)
            self.assertIn(words, str(error))
            self.assertNotIn("hunter2", str(error))

    def test_redis(self) -> None:
        """Redis over TLS, with a user: the password is in the URL or beside it; a wrong one is refused."""
        server = RedisServer(users={"me": _PASSWORD}, tls=True)
        self.addCleanup(server.stop)
        server.start()
        trusting = Credentials(password=_PASSWORD, ca_file=str(server.ca_file))
        place = f"localhost:{server.port}/a%20b"
        for url in (f"rediss://me@{place}", f"rediss://me:hunter2%20%C3%A9%20hunter2@{place}"):
            self.pass_on(RedisTransport(read_address(url), trusting))  # type: ignore[arg-type]
        for url, credentials, words in (
            (f"rediss://me:hunter2@{place}", trusting, "AUTH was refused (WRONGPASS)"),
            (
                f"rediss://me@{place}",
                Credentials(password=_PASSWORD),
                "TLS failed: self-signed certificate",
            ),
            (f"rediss://{place}", Credentials(ca_file=trusting.ca_file), "NOAUTH"),
        ):
            self.refused(RedisTransport(read_address(url), credentials), words)  # type: ignore[arg-type]

    def test_redis_lost(self) -> None:
        """If the server goes away, the stream of events ends with an error, and can be opened again."""
        server = RedisServer()
        self.addCleanup(server.stop)
        server.start()
        transport = RedisTransport(read_address(f"redis://127.0.0.1:{server.port}"), Credentials())  # type: ignore[arg-type]
        stream = iter(transport.events(None))
        server.end()
        self.assertIn("closed the connection", str(self.assertRaises(NoAnswer, next, stream)))
        self.refused(transport, "refused")
        server.start()
        self.pass_on(transport)

    def test_kafka(self) -> None:
        """Kafka over TLS, with each mechanism; a wrong password is refused, and so is a missing topic."""
        broker = shared_broker()
        broker.create_topic("pcapctl-secure", 3)
        trusting = Credentials(password=broker.password, ca_file=str(broker.ca_file))
        place = f"{broker.user}@{broker.secure_server}/pcapctl-secure"
        for mechanism in ("plain", "scram-sha-256", "scram-sha-512"):
            url = f"kafkas://{place}?sasl={mechanism}"
            self.pass_on(KafkaTransport(read_address(url), trusting))  # type: ignore[arg-type]
        wrong = f"kafkas://{broker.user}:hunter2@{broker.secure_server}/pcapctl-secure"
        self.refused(KafkaTransport(read_address(wrong), trusting), "authentication failed")  # type: ignore[arg-type]
        missing = KafkaTransport(read_address(f"kafka://{broker.server}/nosuch-requests"), Credentials())  # type: ignore[arg-type]
        self.refused(missing, "nosuch-requests")
        self.assertNotIn("nosuch-requests", broker.topics())

    def test_kafka_batches(self) -> None:
        """A message that decompresses to too much is not read, and the next one is."""
        broker, topic = shared_broker(), "pcapctl-batches"
        broker.create_topic(topic, 1)
        transport = KafkaTransport(read_address(f"kafka://{broker.server}/{topic}"), Credentials())  # type: ignore[arg-type]
        stream = transport.events(None)
        self.addCleanup(stream.close)
        producer = broker.producer(compression_type="zstd", max_request_size=1 << 30)
        try:
            producer.send(topic, bytes(MAX_BATCH_BYTES + 1)).get(180)
            producer.send(topic, b"after").get(180)
        finally:
            producer.close(60)
        self.assertEqual(next(iter(stream)), b"after")

    def test_unix_socket(self) -> None:
        """A node at a unix socket: requests, events, and what was missed while the stream was closed."""
        process = OwnProcess("daemon")
        self.addCleanup(process.clean_up)
        path, file = process.directory / "http.sock", process.directory / "pcapsvc.toml"
        file.write_text(
            f"[general]\nwritelocal = true\nlocaldir = '{process.directory}'\n"
            f"[http]\nlisten = 'unix:{path}'\n"
        )
        twistd = str(Path(sys.executable).with_name("twistd"))
        api = NodeApi(read_api(f"unix:{path}"), Credentials())

        def answers() -> bool:
            try:
                api.call("GET", "/healthz")
            except NoAnswer:
                return False
            return True

        process.start([twistd, "-n", "--pidfile=", "pcapsvc", "--config", str(file)], answers)
        transport = HttpTransport(api)
        stream = transport.events("first")
        events = iter(stream)
        message = {"node": "any", "interface": ["lo"], "bpf": "udp port 9", "duration": 60}
        self.assertEqual(transport.send(json.dumps({**message, "requestid": "first"}).encode()), 1)
        types = [json.loads(next(events))["type"] for _ in range(2)]
        self.assertEqual(types, ["pcapsvc.request.accepted", "pcapsvc.capture.started"])
        stream.close()
        error = self.assertRaises(Refused, transport.send, b'{"node": "any", "interface": ["lo"], "bfp": 1}')
        self.assertIn("did you mean 'bpf'", str(error))
        transport.send(b'{"node": "any", "stop": "first"}')
        again = transport.events("first")
        self.addCleanup(again.close)
        kinds = (json.loads(body)["type"] for body in again)
        missed = itertools.islice((kind for kind in kinds if not kind.endswith("progress")), 2)
        self.assertEqual([*missed], ["pcapsvc.capture.stopped", "pcapsvc.capture.done"])
