"""C{excludeself}: one capture is uploaded and asked after, while another is on the same interface."""

from __future__ import annotations

import atexit
import contextlib
import http.client
import itertools
import json
import re
import signal
import socket
import socketserver
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from peers import s3, sqs
from peers.cloudshark import CloudSharkServer
from peers.daemon import Daemon
from peers.redis import RedisServer
from peers.requirement import has_ipv6, require_ipv6, require_root
from peers.tcpdump import read_packets
from tests.integration.strangers import Relay, RestartableKafka, RestartableRedis, Strangers

#: The bytes before the network layer's header, by interface (pcap-linktype(7): EN10MB and LINUX_SLL).
LINK_HEADERS = {"lo": 14, "any": 16}

_PATIENCE_SECONDS = 180.0
_TOKEN = "open-sesame"
# A request of Kafka's protocol: ApiVersions (18) of version 0, correlation id 1, no client id.
_API_VERSIONS = struct.pack("!ihhih", 10, 18, 0, 1, -1)


class _Echo(socketserver.BaseRequestHandler):
    """Somebody else's server."""

    def handle(self) -> None:
        while data := self.request.recv(4096):
            self.request.sendall(data)


def ports_of(path: Path, link_header: int) -> list[tuple[int, int]]:
    """The TCP ports, from and to, of each packet of IPv4 or IPv6 in a capture file."""
    found = []
    for packet in read_packets(path):
        data = packet.data[link_header:]
        header = (data[0] & 15) * 4 if data[0] >> 4 == 4 else 40
        ports: tuple[int, int] = struct.unpack_from("!HH", data, header)
        found.append(ports)
    return found


def filter_for(ports: Iterable[int]) -> str:
    """
    A filter for TCP to and from these ports. What others say on loopback meanwhile might reach a capture's
    limit of bytes.
    """
    return f"tcp and ({' or '.join(f'port {port}' for port in ports)})"


def delivered(daemon: Daemon, capture: str) -> list[dict[str, Any]]:
    """End a capture when all has been said, so that it is uploaded. Its deliveries."""

    def has_packets() -> bool | None:
        return daemon.request("GET", f"/captures/{capture}")[1]["packets"] > 0 or None

    daemon.until(has_packets, "packets")
    status, answer = daemon.request("DELETE", f"/captures/{capture}")
    assert status == 200, answer
    deliveries: list[dict[str, Any]] = daemon.done(capture)["deliveries"]
    return deliveries


@cache
def _kafka() -> RestartableKafka:
    """The broker of all tests with one, which restart it. It ends with this process."""
    broker = RestartableKafka("127.0.0.1", *(["::1"] if has_ipv6() else []))
    atexit.register(broker.stop)
    return broker


class TalkingDaemon(Daemon):
    """
    A daemon whose HTTP listens somewhere else.

    @ivar hosts: whom to ask, in turn.
    """

    def __init__(self, configuration: str, *, general: str, listen: str, hosts: Sequence[str]) -> None:
        """
        @param listen: a server endpoint string of Twisted, with C{PORT} in it.
        """
        super().__init__(configuration, general=general)
        self.hosts = itertools.cycle(hosts)
        token = self._file.with_name("token")
        token.touch(mode=0o600)
        token.write_text(_TOKEN)
        here = f'listen = "tcp:{self.port}:interface=127.0.0.1"'
        there = f"listen = {json.dumps(listen.replace('PORT', str(self.port)))}\ntokenfile = '{token}'"
        text = self._file.read_text()
        assert here in text
        self._file.write_text(text.replace(here, there))

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
        """The status and the JSON of an answer."""
        connection = http.client.HTTPConnection(next(self.hosts), self.port, timeout=_PATIENCE_SECONDS)
        with contextlib.closing(connection):
            connection.request(method, path, body, {"Authorization": f"Bearer {_TOKEN}"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())


class ExcludeSelfTests(SynchronousTestCase):
    """The daemon's broker, its uploads and its HTTP, all on loopback."""

    def setUp(self) -> None:
        """Peers, and an echo server that has nothing to do with the daemon."""
        require_root("to capture")
        self.redis, self.cloudshark, self.s3 = RedisServer(), CloudSharkServer(), s3.shared_server()
        for peer in (self.redis, self.cloudshark):
            self.addCleanup(peer.stop)
            peer.start()
        echo = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Echo)
        echo.daemon_threads = True
        self.addCleanup(echo.server_close)
        self.addCleanup(echo.shutdown)
        threading.Thread(target=echo.serve_forever, daemon=True).start()
        self.echo_port: int = echo.server_address[1]

    @property
    def s3_port(self) -> int:
        """The port of the S3 server."""
        return int(self.s3.endpoint.rpartition(":")[2])

    def daemon(self, general: str) -> Daemon:
        """A daemon with all of that."""
        daemon = Daemon(
            f'[redis]\nlisten = true\nhost = "127.0.0.1"\nport = {self.redis.port}\n'
            f'[cloudshark]\nupload = true\nhost = "localhost"\nport = {self.cloudshark.port}\n'
            f'token = "{self.cloudshark.token}"\nverify = "{self.cloudshark.ca_file}"\n'
            f'[s3]\nupload = true\naccessid = "{self.s3.access_key}"\naccesskey = "{self.s3.secret_key}"\n'
            f'endpoint = "{self.s3.endpoint}"\nbucket = "{self.s3.bucket}"\nregion = "us-east-1"\n',
            general=general,
        )
        self.addCleanup(daemon.stop)
        daemon.start()
        daemon.logged("subscribed")
        return daemon

    def captured(
        self, daemon: Daemon, interface: str, link_header: int, *, is_rolling: bool = False
    ) -> list[tuple[int, int]]:
        """The ports of a capture, during which three others are delivered, and asked after all the time."""
        kind = {"rolling": True, "bytes": 10**7} if is_rolling else {"timeout": 300}
        ports = [daemon.port, self.redis.port, self.cloudshark.port, self.s3_port, self.echo_port]
        long = daemon.capture(interface=[interface], bpf=filter_for(ports), duration=300, **kind)
        with socket.create_connection(("127.0.0.1", self.echo_port)) as others:
            for _ in range(3):
                short = daemon.capture(interface=["lo"], timeout=300, bpf=f"tcp port {self.echo_port}")
                for _ in range(10):
                    others.sendall(b"hello")
                    self.assertTrue(others.recv(100))
                deliveries = delivered(daemon, short)
                self.assertEqual({one["state"] for one in deliveries}, {"delivered"}, deliveries)
                self.redis.publish("capture", b'{"node": "other"}')
        daemon.signal(signal.SIGTERM)
        self.assertEqual(daemon.wait(), 0)
        return ports_of(daemon.file_of(long), link_header)

    def own_ports(self, daemon: Daemon) -> dict[int, str]:
        """What the daemon talks to, by port."""
        own = {daemon.port: "http", self.cloudshark.port: "cloudshark", self.s3_port: "s3"}
        clients = self.redis.command("CLIENT", "LIST", "TYPE", "pubsub")
        assert isinstance(clients, bytes)
        (subscriber,) = re.findall(rb"\baddr=127\.0\.0\.1:(\d+)", clients)
        return {**own, int(subscriber): "redis"}

    def counted(self, ports: list[tuple[int, int]], own: dict[int, str]) -> dict[str, int]:
        """How many packets there are of each."""
        found: dict[str, int] = {}
        for pair in ports:
            name = next((own[port] for port in pair if port in own), None)
            # A client's port may be that of a connection between others as well.
            if name == "redis" and self.redis.port not in pair:
                continue
            if name is not None:
                found[name] = found.get(name, 0) + 1
        return found

    def test_without(self) -> None:
        """Without it, all of them are in the file: it is what tcpdump would hold."""
        daemon = self.daemon("")
        own = self.own_ports(daemon)
        found = self.counted(self.captured(daemon, "lo", 14), own)
        self.assertEqual(set(found), {"http", "cloudshark", "s3", "redis"})

    def test_loopback(self) -> None:
        """With it, none is, from the first packet to the last; and all that is others'."""
        daemon = self.daemon("excludeself = true")
        own = self.own_ports(daemon)
        ports = self.captured(daemon, "lo", 14)
        self.assertEqual(self.counted(ports, own), {})
        # Each of 30 greetings goes to the echo server and back, acknowledged up to twice; the test's own
        # connections to Redis are others' too.
        echoed = [pair for pair in ports if self.echo_port in pair]
        self.assertGreaterEqual(len(echoed), 3 + 60)
        self.assertTrue([pair for pair in ports if self.redis.port in pair])

    def test_any(self) -> None:
        """Likewise on all interfaces, whose packets have another header."""
        daemon = self.daemon("excludeself = true")
        own = self.own_ports(daemon)
        ports = self.captured(daemon, "any", 16)
        self.assertEqual(self.counted(ports, own), {})
        self.assertGreaterEqual(len([pair for pair in ports if self.echo_port in pair]), 3 + 60)

    def test_rolling(self) -> None:
        """Likewise in a capture that keeps its newest packets."""
        for general in ("", "excludeself = true"):
            daemon = self.daemon(general)
            own = self.own_ports(daemon)
            ports = self.captured(daemon, "lo", 14, is_rolling=True)
            self.assertEqual(bool(self.counted(ports, own)), not general)
            self.assertGreaterEqual(len([pair for pair in ports if self.echo_port in pair]), 3 + 60)


class SideBySideCase(SynchronousTestCase):
    """Two daemons capture the same: one leaves its own out, and the witness nothing."""

    def setUp(self) -> None:
        """A witness, to which nobody but the test speaks."""
        require_root("to capture")
        self.strangers = Strangers()
        self.witness = Daemon(node="witness")
        self.addCleanup(self.witness.stop)
        self.witness.start()

    def relay(self, behind: int, host: str) -> Relay:
        """A relay to a port."""
        relay = Relay(behind, host)
        self.addCleanup(relay.stop)
        return relay

    def started(self, daemon: Daemon, *lines: str) -> Daemon:
        """A daemon that has logged all this, and runs until the end of the test."""
        self.addCleanup(daemon.stop)
        daemon.start()
        for line in lines:
            daemon.logged(line)
        return daemon

    def logged_again(self, daemon: Daemon, words: str, do: Callable[[], object]) -> None:
        """Do something, after which a line with these words is logged once more."""
        before = daemon.log.count(words)
        do()
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while daemon.log.count(words) == before:
            self.assertLess(time.monotonic(), deadline, f"waited for {words!r} in vain:\n{daemon.log}")
            time.sleep(0.02)

    def compare(self, daemon: Daemon, own: Mapping[int, str], do: Callable[[], object]) -> dict[str, int]:
        """
        Do something while both capture on loopback, and on all interfaces: of what the daemon
        sent and got the witness has packets of each kind, and its own files have none. What
        strangers say to the same ports is in both, packet by packet.

        @param own: what the daemon talks to, by port.
        @return: how many connections of each kind the witness saw on loopback, but for strangers'.
        """
        limits = {"bpf": filter_for(own), "duration": 300, "timeout": 300}
        both = (self.witness, daemon)
        ids = {
            (one, interface): one.capture(interface=[interface], **limits)
            for one in both
            for interface in LINK_HEADERS
        }
        do()
        # The witness lasts longer: to the end of the other's connections.
        for one in reversed(both):
            one.signal(signal.SIGTERM)
            self.assertEqual(one.wait(), 0)
        seen: dict[str, int] = {}
        for interface, link_header in reversed(LINK_HEADERS.items()):
            (witnessed, talked), (kept, also_talked) = (
                self.counted(ports_of(one.file_of(ids[one, interface]), link_header), own) for one in both
            )
            self.assertEqual(kept, {}, interface)
            seen = dict(Counter(name for name, _ in witnessed))
            self.assertEqual(set(seen), set(own.values()), interface)
            self.assertEqual(also_talked, talked, interface)
            self.assertEqual({client for _, client in talked}, self.strangers.talked, interface)
        return seen

    def counted(
        self, pairs: Iterable[tuple[int, int]], own: Mapping[int, str]
    ) -> tuple[Counter[tuple[str, int]], Counter[tuple[str, int]]]:
        """How many packets connections to these ports have: all but strangers', and those that talked."""
        others: Counter[tuple[str, int]] = Counter()
        talked: Counter[tuple[str, int]] = Counter()
        for pair in pairs:
            for port, client in (pair, pair[::-1]):
                if port in own and client not in self.strangers.ports:
                    others[own[port], client] += 1
                elif port in own and client in self.strangers.talked:
                    talked[own[port], client] += 1
        return others, talked


class RedisTests(SideBySideCase):
    """A subscription, and a Redis that goes away."""

    def daemon(self, redis: RedisServer, host: str, **options: Any) -> Daemon:
        """A daemon that is subscribed."""
        configuration = f'[redis]\nlisten = true\nhost = "{host}"\nport = {redis.port}\n'
        made = TalkingDaemon(configuration, general="excludeself = true", **options)
        return self.started(made, "subscribed")

    def redis(self, host: str = "127.0.0.1") -> RestartableRedis:
        """A Redis."""
        redis = RestartableRedis(self.strangers, host)
        self.addCleanup(redis.stop)
        redis.start()
        return redis

    def restart(self, host: str) -> None:
        """Redis goes away while a capture runs, and is there again: it is another connection."""
        redis = self.redis(host)
        daemon = self.daemon(redis, host, listen="tcp:PORT:interface=127.0.0.1", hosts=["127.0.0.1"])

        def restart() -> None:
            self.strangers.talk(redis.port, b"PING\r\n", host)
            self.logged_again(daemon, "#warn] Redis", redis.end)
            # So that attempts are refused.
            time.sleep(2)
            self.logged_again(daemon, "subscribed to channel", redis.start)
            self.strangers.talk(redis.port, b"PUBLISH capture {}\r\n", host)

        seen = self.compare(daemon, {redis.port: "redis"}, restart)
        # The one before, those that were refused, and the one after.
        self.assertGreaterEqual(seen["redis"], 3)

    def test_restart(self) -> None:
        """By IPv4."""
        self.restart("127.0.0.1")

    def test_restart_on_ipv6(self) -> None:
        """By IPv6."""
        require_ipv6()
        self.restart("::1")

    def test_mapped(self) -> None:
        """IPv4 through sockets of IPv6: HTTP that listens on all addresses, and Redis by a mapped one."""
        require_ipv6()
        redis = self.redis()
        hosts = ["127.0.0.1", "::1"]
        daemon = self.daemon(redis, "::ffff:127.0.0.1", listen="tcp6:PORT", hosts=hosts)

        def ask() -> None:
            for _ in range(20):
                self.assertEqual(daemon.request("GET", "/captures/none")[0], 404)
            drop = lambda: self.strangers.talk(redis.port, b"CLIENT KILL TYPE pubsub\r\n")  # noqa: E731
            self.logged_again(daemon, "subscribed to channel", drop)

        seen = self.compare(daemon, {redis.port: "redis", daemon.port: "http"}, ask)
        self.assertGreaterEqual(seen["http"], 20)


class KafkaTests(SideBySideCase):
    """A reader of a topic, whose client has threads and sockets of its own."""

    def restart(self, host: str) -> None:
        """The broker is killed while a capture runs, and is there again."""
        kafka = _kafka()
        topic, port = self.id().rpartition(".")[2], kafka.ports[host]
        if not kafka.is_running:
            kafka.start()
        kafka.create_topic(topic)
        made = Daemon(
            f'[kafka]\nlisten = true\nserver = ["{kafka.server_on(host)}"]\ntopic = "{topic}"\n',
            general="excludeself = true",
        )
        daemon = self.started(made, "reading topic")

        def restart() -> None:
            self.strangers.talk(port, _API_VERSIONS, host)
            self.logged_again(daemon, "#warn] Kafka", kafka.kill)
            time.sleep(1)
            self.logged_again(daemon, "reading topic", partial(kafka.start_again, self.strangers, host))
            self.strangers.talk(port, _API_VERSIONS, host)

        seen = self.compare(daemon, {port: "kafka"}, restart)
        self.assertGreaterEqual(seen["kafka"], 3)

    def test_restart(self) -> None:
        """By IPv4."""
        self.restart("127.0.0.1")

    def test_restart_on_ipv6(self) -> None:
        """By IPv6."""
        require_ipv6()
        self.restart("::1")


class SQSTests(SideBySideCase):
    """Long polls of a client that blocks, in threads, and that opens a new connection if one has died."""

    def poll(self, host: str) -> None:
        """Connections are cut in the middle of a poll, again and again."""
        server = sqs.shared_server()
        queue = server.create_queue(self.id().replace(".", "_")[-60:])
        relay = self.relay(int(server.endpoint.rpartition(":")[2]), host)
        url = queue.replace(server.endpoint, f"http://{f'[{host}]' if ':' in host else host}:{relay.port}")
        made = Daemon(
            f'[sqs]\nlisten = true\nurl = "{url}"\naccessid = "a"\naccesskey = "b"\nwaitseconds = 1\n',
            general="excludeself = true",
        )
        daemon = self.started(made, "listening")

        def cut() -> None:
            for _ in range(4):
                relay.cut()
                relay.connected.clear()
                self.assertTrue(relay.connected.wait(_PATIENCE_SECONDS), "it did not connect again")
                self.strangers.talk(relay.port, b"GET / HTTP/1.0\r\n\r\n", host)
                time.sleep(0.3)
            # What comes is for another node: it is given back on the connection.
            server.send(queue, ['{"node": "other"}'])
            time.sleep(1)

        seen = self.compare(daemon, {relay.port: "sqs"}, cut)
        self.assertGreaterEqual(seen["sqs"], 4)

    def test_poll(self) -> None:
        """By IPv4."""
        self.poll("127.0.0.1")

    def test_poll_on_ipv6(self) -> None:
        """By IPv6."""
        require_ipv6()
        self.poll("::1")


class IPv6Tests(SideBySideCase):
    """HTTP and uploads, all of them by IPv6."""

    def test_uploads(self) -> None:
        """One capture is asked for, uploaded and asked after, while another runs."""
        require_ipv6()
        cloudshark, store = CloudSharkServer(), s3.shared_server()
        self.addCleanup(cloudshark.stop)
        cloudshark.start()
        to_cloudshark = self.relay(cloudshark.port, "::1")
        to_s3 = self.relay(int(store.endpoint.rpartition(":")[2]), "::1")
        made = TalkingDaemon(
            f'[cloudshark]\nupload = true\nhost = "::1"\nport = {to_cloudshark.port}\n'
            f'token = "{cloudshark.token}"\nverify = false\n'
            f'[s3]\nupload = true\naccessid = "{store.access_key}"\naccesskey = "{store.secret_key}"\n'
            f'endpoint = "http://[::1]:{to_s3.port}"\nbucket = "{store.bucket}"\nregion = "us-east-1"\n',
            general="excludeself = true",
            listen="tcp6:PORT:interface=\\:\\:1",
            hosts=["::1"],
        )
        daemon = self.started(made)

        def upload() -> None:
            for _ in range(3):
                short = daemon.capture(interface=["lo"], timeout=300, bpf=f"port {to_s3.port}")
                self.strangers.talk(to_s3.port, b"GET / HTTP/1.0\r\n\r\n", "::1")
                deliveries = delivered(daemon, short)
                self.assertEqual({one["state"] for one in deliveries}, {"delivered"}, deliveries)

        own = {daemon.port: "http", to_cloudshark.port: "cloudshark", to_s3.port: "s3"}
        seen = self.compare(daemon, own, upload)
        self.assertGreaterEqual(min(seen["cloudshark"], seen["s3"]), 3)
