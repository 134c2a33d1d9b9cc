"""C{excludeself}: one capture is uploaded and asked after, while another is on the same interface."""

from __future__ import annotations

import re
import socket
import socketserver
import struct
import threading
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.peers.cloudshark import CloudSharkServer
from tests.peers.daemon import Daemon
from tests.peers.redis import RedisServer
from tests.peers.requirement import require_root
from tests.peers.s3 import S3Server
from tests.peers.tcpdump import read_packets


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


class ExcludeSelfTests(SynchronousTestCase):
    """The daemon's broker, its uploads and its HTTP, all on loopback."""

    def setUp(self) -> None:
        """Peers, and an echo server that has nothing to do with the daemon."""
        require_root("to capture")
        self.redis, self.cloudshark, self.s3 = RedisServer(), CloudSharkServer(), S3Server()
        for peer in (self.redis, self.cloudshark, self.s3):
            self.addCleanup(peer.stop)
            peer.start()
        echo = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Echo)
        echo.daemon_threads = True
        self.addCleanup(echo.server_close)
        self.addCleanup(echo.shutdown)
        threading.Thread(target=echo.serve_forever, daemon=True).start()
        self.echo_port: int = echo.server_address[1]

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

    def captured(self, daemon: Daemon, interface: str, link_header: int) -> list[tuple[int, int]]:
        """The ports of a capture, during which three others are delivered, and asked after all the time."""
        long = daemon.capture(interface=[interface], bpf="tcp", duration=4, timeout=4)
        with socket.create_connection(("127.0.0.1", self.echo_port)) as others:
            for _ in range(3):
                short = daemon.capture(
                    interface=["lo"], packets=10, timeout=5, bpf=f"tcp port {self.echo_port}"
                )
                for _ in range(10):
                    others.sendall(b"hello")
                    self.assertTrue(others.recv(100))
                deliveries = daemon.done(short)["deliveries"]
                self.assertEqual({one["state"] for one in deliveries}, {"delivered"}, deliveries)
                self.redis.publish("capture", b'{"node": "other"}')
        daemon.done(long)
        return ports_of(daemon.file_of(long), link_header)

    def own_ports(self, daemon: Daemon) -> dict[int, str]:
        """What the daemon talks to, by port."""
        s3_port = int(self.s3.endpoint.rpartition(":")[2])
        own = {daemon.port: "http", self.cloudshark.port: "cloudshark", s3_port: "s3"}
        clients = self.redis.command("CLIENT", "LIST", "TYPE", "pubsub")
        assert isinstance(clients, bytes)
        (subscriber,) = re.findall(rb"\baddr=127\.0\.0\.1:(\d+)", clients)
        return {**own, int(subscriber): "redis"}

    def told(self, ports: list[tuple[int, int]], own: dict[int, str]) -> dict[str, int]:
        """How many packets there are of each."""
        told: dict[str, int] = {}
        for pair in ports:
            name = next((own[port] for port in pair if port in own), None)
            if name is not None:
                told[name] = told.get(name, 0) + 1
        return told

    def test_without(self) -> None:
        """Without it, all of them are in the file: it is what tcpdump would hold."""
        daemon = self.daemon("")
        told = self.told(self.captured(daemon, "lo", 14), self.own_ports(daemon))
        self.assertEqual(set(told), {"http", "cloudshark", "s3", "redis"})

    def test_loopback(self) -> None:
        """With it, none is, from the first packet to the last; and all that is others'."""
        daemon = self.daemon("excludeself = true")
        ports = self.captured(daemon, "lo", 14)
        self.assertEqual(self.told(ports, self.own_ports(daemon)), {})
        # Each of 30 greetings goes to the echo server and back, twice acknowledged at most; the test's own
        # connections to Redis are others' too.
        echoed = [pair for pair in ports if self.echo_port in pair]
        self.assertGreaterEqual(len(echoed), 3 + 60)
        self.assertTrue([pair for pair in ports if self.redis.port in pair])

    def test_any(self) -> None:
        """Likewise on all interfaces, whose packets have another header."""
        daemon = self.daemon("excludeself = true")
        ports = self.captured(daemon, "any", 16)
        self.assertEqual(self.told(ports, self.own_ports(daemon)), {})
        self.assertGreaterEqual(len([pair for pair in ports if self.echo_port in pair]), 3 + 60)
