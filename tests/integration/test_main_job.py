"""The main job, real at every step: a request becomes a delivered capture."""

from __future__ import annotations

import json
import math
import signal
import stat
import time
from datetime import datetime
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from peers.cloudshark import CloudSharkServer, refuse
from peers.daemon import Daemon
from peers.frames import number_of, udp_frame
from peers.redis import RedisServer
from peers.s3 import S3Server
from peers.tcpdump import Packet, Tcpdump, read_packets, tshark_complaint
from peers.wire import Wire
from tests.integration.traffic import PATIENT


def _content(packets: list[Packet]) -> list[tuple[int, bytes]]:
    """What two captures of the same packets have in common to the byte; each has its own clock reading."""
    return [(packet.length, packet.data) for packet in packets]


class MainJobTests(SynchronousTestCase):
    """The daemon in its own process, and real packets on a wire."""

    def setUp(self) -> None:
        """A wire."""
        self.wire = Wire()
        self.addCleanup(self.wire.stop)
        self.wire.start()

    def daemon(self, configuration: str = "", **options: str) -> Daemon:
        """A daemon that runs until the end of the test."""
        daemon = Daemon(configuration, **options)
        self.addCleanup(daemon.stop)
        daemon.start()
        return daemon

    def has_packets(self, daemon: Daemon, capture: str, packets: int) -> None:
        """Wait until a capture has so many packets."""

        def has_them() -> bool | None:
            return daemon.request("GET", f"/captures/{capture}")[1]["packets"] == packets or None

        daemon.until(has_them, f"{packets} packets")

    def test_same_packets_as_tcpdump(self) -> None:
        """The file holds the packets that tcpdump sees beside it, byte for byte, and at the same times."""
        daemon = self.daemon()
        tcpdump = Tcpdump(self.wire.interface, snaplen=300)
        self.addCleanup(tcpdump.stop)
        tcpdump.start()
        capture = daemon.capture(interface=[self.wire.interface], snap=300, packets=3000)
        sizes = (60, 128, 299, 300, 301, 1400)
        self.wire.send([udp_frame(number, size=sizes[number % 6]) for number in range(3000)])
        state = daemon.done(capture)
        self.assertEqual((state["reason"], state["packets"], state["dropped"]), ("packets", 3000, 0))
        tcpdump.wait_for(3000)
        path = daemon.file_of(capture)
        ours, theirs = read_packets(path), tcpdump.finish()
        self.assertEqual(_content(ours), _content(theirs))
        apart = [
            abs(one.seconds - other.seconds + (one.fraction - other.fraction) / 1e6)
            for one, other in zip(ours, theirs, strict=True)
        ]
        self.assertLess(sorted(apart)[len(apart) // 2], 0.001)
        # Magic number, version, zone, accuracy, snap length, link type: as libpcap writes them for tcpdump.
        self.assertEqual(path.read_bytes()[:24], tcpdump.path.read_bytes()[:24])
        self.assertIsNone(tshark_complaint(path))

    def test_waiting_handle(self) -> None:
        """If a handle is on standby, a capture has what came after the request, and nothing before."""
        daemon = self.daemon(f'[capture]\nstandby = ["{self.wire.interface}"]\n')
        for round in range(2):
            self.wire.send([udp_frame(number, port=9) for number in range(100, 110)])
            capture = daemon.capture(interface=[self.wire.interface], packets=5, bpf="udp port 9")
            self.wire.send([udp_frame(number) for number in range(5)])
            state = daemon.done(capture)
            self.assertEqual((state["packets"], state["received"]), (5, 5), round)
            found = [number_of(packet.data) for packet in read_packets(daemon.file_of(capture))]
            self.assertEqual(found, list(range(5)))

    def test_any(self) -> None:
        """A capture on all interfaces has the link type that tshark understands."""
        daemon = self.daemon()
        capture = daemon.capture(interface=["any"], packets=5, bpf="udp port 5353 and host 192.0.2.1")
        self.wire.send([udp_frame(number, port=5353) for number in range(5)])
        self.assertEqual(daemon.done(capture)["link_type"], 113)
        self.assertIsNone(tshark_complaint(daemon.file_of(capture)))

    def test_all_destinations(self) -> None:
        """One request by Redis is delivered to a directory, CloudShark and S3, the same bytes to each."""
        redis, cloudshark, s3 = RedisServer(password="hush-hush"), CloudSharkServer(), S3Server()
        for peer in (redis, cloudshark, s3):
            self.addCleanup(peer.stop)
            peer.start()
        daemon = self.daemon(
            f'[redis]\nlisten = true\nhost = "127.0.0.1"\nport = {redis.port}\nauth = "hush-hush"\n'
            f'[cloudshark]\nupload = true\nhost = "localhost"\nport = {cloudshark.port}\n'
            f'token = "{cloudshark.token}"\nverify = "{cloudshark.ca_file}"\n'
            f'[s3]\nupload = true\naccessid = "{s3.access_key}"\naccesskey = "{s3.secret_key}"\n'
            f'endpoint = "{s3.endpoint}"\nbucket = "{s3.bucket}"\nfolder = "pcaps"\nregion = "us-east-1"\n'
            f'[[interface]]\nname = "{self.wire.interface}"\nalias = ["public"]\n'
        )
        daemon.logged("subscribed")
        request = {
            "nodere": "^node-[0-9]+$",
            "alias": ["public"],
            "packets": 20,
            "customer": "Zoë & Söhne",
            "alertid": 655443,
            "tags": "blah,tagme",
            "encryption": True,
            "acl": "bucket-owner-full-control",
        }
        self.assertEqual(redis.publish("capture", json.dumps(request).encode()), 1)
        capture = daemon.logged("capturing on").split(": capturing")[0].split()[-1]
        self.wire.send([udp_frame(number) for number in range(20)])
        state = daemon.done(capture)
        self.assertEqual(
            {(one["destination"], one["state"]) for one in state["deliveries"]},
            {("local", "delivered"), ("cloudshark", "delivered"), ("s3", "delivered")},
        )
        for one in state["deliveries"]:
            # In one line, once.
            lines = [line for line in daemon.log.splitlines() if one["location"] in line]
            self.assertEqual(len(lines), 1, lines)
            self.assertIn(f"{capture}: delivered to {one['destination']}: {one['location']}", lines[0])
        path = daemon.file_of(capture)
        data = path.read_bytes()
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o640)
        self.assertEqual([number_of(packet.data) for packet in read_packets(path)], list(range(20)))
        tags = (
            "customer:Zoë & Söhne,alertid:655443,blah,tagme,alias:public,node:node-1,"
            f"interface:{self.wire.interface},snaplength:512"
        )
        (upload,) = cloudshark.uploads()
        self.assertEqual(
            (upload.filename, upload.data, upload.fields, upload.has_length),
            (path.name, data, {"additional_tags": tags}, True),
        )
        stored, metadata, head = s3.get(f"pcaps/{path.name}")
        self.assertEqual(stored, data)
        self.assertEqual(head["ServerSideEncryption"], "AES256")
        self.assertTrue(metadata["tags"].startswith("customer:Zo%C3%AB & S%C3%B6hne,alertid:655443,"))
        for secret in ("hush-hush", cloudshark.token, s3.secret_key):
            self.assertNotIn(secret, daemon.log)

    def test_one_destination_fails(self) -> None:
        """A destination that refuses a capture leaves the others their copy, and says why."""
        cloudshark = CloudSharkServer()
        self.addCleanup(cloudshark.stop)
        cloudshark.start()
        cloudshark.behave(refuse(400, "no room", "come back never"))
        daemon = self.daemon(
            f'[cloudshark]\nupload = true\nhost = "localhost"\nport = {cloudshark.port}\n'
            f'token = "{cloudshark.token}"\nverify = "{cloudshark.ca_file}"\n'
        )
        capture = daemon.capture(interface=[self.wire.interface], packets=1)
        self.wire.send([udp_frame(1)])
        deliveries = {one["destination"]: one for one in daemon.done(capture)["deliveries"]}
        self.assertEqual(deliveries["local"]["state"], "delivered")
        self.assertEqual(deliveries["cloudshark"]["state"], "failed")
        self.assertIn("no room", deliveries["cloudshark"]["problem"])
        self.assertEqual(len(read_packets(daemon.file_of(capture))), 1)

    def test_limits(self) -> None:
        """
        Each of the four limits ends a capture: two to the packet, two within 100 ms,
        and what it takes to write the file, which is what shows the end here.
        """
        daemon = self.daemon()
        interface = [self.wire.interface]
        capture = daemon.capture(interface=interface, packets=7)
        self.wire.send([udp_frame(number) for number in range(20)])
        self.assertEqual([daemon.done(capture)[key] for key in ("reason", "packets")], ["packets", 7])

        # 24 bytes of the file, and 16 + 128 of each packet: the seventh brings it to 1,032.
        capture = daemon.capture(interface=interface, bytes=1000)
        self.wire.send([udp_frame(number, size=128) for number in range(20)])
        state = daemon.done(capture)
        self.assertEqual([state[key] for key in ("reason", "packets", "bytes")], ["bytes", 7, 1032])

        for limit, reason in (({"timeout": 1}, "idle"), ({"duration": 1}, "duration")):
            # Once in time is enough: on a busy machine anything may be late, even the packet.
            late = [self.lateness(daemon, limit, reason)]
            while late[-1] >= 0.1 and len(late) < 10:
                late.append(self.lateness(daemon, limit, reason))
            self.assertLess(late[-1], 0.1, f"{reason} {late}")

    def lateness(self, daemon: Daemon, limit: dict[str, int], reason: str) -> float:
        """
        How long after a limit of one second the file of a capture is written, which ends by it; infinite if
        its packet was sent too late.
        """
        capture = daemon.capture(interface=[self.wire.interface], **limit)
        self.wire.send([udp_frame(1)])
        state = daemon.done(capture)
        self.assertEqual(state["reason"], reason)
        if state["packets"] == 0:
            return math.inf
        path = daemon.file_of(capture)
        if reason == "idle":
            (packet,) = read_packets(path)
            began = packet.seconds + packet.fraction / 1e6
        else:
            began = datetime.fromisoformat(state["started"]).timestamp()
        late = path.stat().st_mtime - began - 1
        # The kernel's clock of files may be one tick late.
        self.assertGreater(late, -0.05, reason)
        return late

    def test_packets_until_the_deadline(self) -> None:
        """What arrived by the deadline is in the file, though the kernel had not handed it over."""
        seconds = 6
        daemon = self.daemon(PATIENT)
        capture = daemon.capture(interface=[self.wire.interface], duration=seconds)
        sent: list[float] = []
        until = time.monotonic() + seconds + 0.2
        while time.monotonic() < until:
            self.wire.send([udp_frame(len(sent))])
            sent.append(time.time())
            time.sleep(0.001)
        state = daemon.done(capture)
        self.assertEqual(state["reason"], "duration")
        ends = datetime.fromisoformat(state["started"]).timestamp() + seconds
        in_time = sum(when < ends - 0.005 for when in sent)
        self.assertGreater(in_time, 0)
        found = [number_of(packet.data) for packet in read_packets(daemon.file_of(capture))]
        self.assertEqual(found[:in_time], list(range(in_time)))

    def test_interface_comes_and_goes(self) -> None:
        """An interface that appears after the start works; when it goes, what there is is kept."""
        daemon = self.daemon()
        late = Wire()
        self.addCleanup(late.stop)
        late.start()
        capture = daemon.capture(interface=[late.interface])
        late.send([udp_frame(number) for number in range(10)])
        # The kernel drops what is on its way if the interface disappears.
        self.has_packets(daemon, capture, 10)
        late.delete()
        state = daemon.done(capture)
        self.assertEqual((state["reason"], state["packets"]), ("device_lost", 10))
        self.assertEqual(len(read_packets(daemon.file_of(capture))), 10)

    def test_two_captures_at_once(self) -> None:
        """Two captures on one interface in one second have a file each."""
        daemon = self.daemon()
        captures = [daemon.capture(interface=[self.wire.interface], packets=3) for _ in range(2)]
        self.wire.send([udp_frame(number) for number in range(3)])
        files = {daemon.done(capture)["file"] for capture in captures}
        self.assertEqual(len(files), 2)
        self.assertEqual({path.name for path in daemon.captures.iterdir()}, files)

    def test_nothing_captured(self) -> None:
        """If no packet arrived, nothing is written."""
        daemon = self.daemon()
        capture = daemon.capture(interface=[self.wire.interface], timeout=1)
        self.assertEqual([daemon.done(capture)[key] for key in ("reason", "packets")], ["idle", 0])
        self.assertEqual(list(daemon.captures.iterdir()), [])

    def test_refused_requests_leave_nothing_behind(self) -> None:
        """Requests that are refused, each for its own reason, cost no descriptor, and the next one works."""
        daemon = self.daemon()
        interface = self.wire.interface
        before = daemon.descriptors()
        for message, path in (
            ({"interface": [interface], "bpf": "tcp prot 80"}, "bpf"),
            ({"interface": [interface], "bpf": "host www.example.com"}, "bpf"),
            ({"interface": ["nosuch0"]}, "interface"),
            ({"interface": [interface], "packets": -1}, "packets"),
            ({"interface": [interface], "packets": True}, "packets"),
            ({"interface": [interface], "bfp": "udp"}, "bfp"),
            ({"alias": ["nobody"]}, "alias"),
        ) * 3:
            body = json.dumps({"node": "any", **message}).encode()
            status, answer = daemon.request("POST", "/captures", body)
            self.assertEqual((status, [problem["path"] for problem in answer["problems"]]), (400, [path]))
        status, _ = daemon.request("POST", "/captures", b'{"node": "elsewhere", "packets": -1}')
        self.assertEqual(status, 404)
        # Until it has noticed that the last connection is closed.
        daemon.until(lambda: daemon.descriptors() <= before or None, f"the descriptors to be {before}")
        self.assertNotIn("elsewhere", daemon.log)
        capture = daemon.capture(interface=[interface], packets=1)
        self.wire.send([udp_frame(1)])
        self.assertEqual(daemon.done(capture)["packets"], 1)

    def test_no_more_than_is_needed(self) -> None:
        """OpenSSL's binding takes memory only where something is switched on that speaks TLS through it."""
        for configuration, needed in (
            ("", False),
            ("[sqs]\nlisten = true\nurl = 'http://127.0.0.1:9/1/q'\nregion = 'x'\n", False),
            ("[redis]\nlisten = true\nhost = '127.0.0.1'\nport = 9\n", False),
            ("[redis]\nlisten = true\nhost = '127.0.0.1'\nport = 9\ntls = true\n", True),
            ("[cloudshark]\nupload = true\nhost = '127.0.0.1'\ntoken = 'x'\n", True),
        ):
            daemon = Daemon(configuration)
            self.addCleanup(daemon.stop)
            daemon.start(is_cold=True)
            loaded = Path(f"/proc/{daemon.pid}/maps").read_text()
            self.assertEqual("cryptography" in loaded, needed, configuration)
            daemon.stop()

    def test_busy(self) -> None:
        """Beyond the limit of captures, or of the memory that they may hold, the node is busy."""
        daemon = self.daemon(general="maxcaptures = 2\nmaxbytes = 30000000\nmaxmemory = 40000000")
        body = {"node": "any", "interface": [self.wire.interface], "duration": 300, "timeout": 300}
        daemon.capture(**body)
        status, answer = daemon.request("POST", "/captures", json.dumps(body).encode())
        self.assertEqual(status, 503)
        self.assertIn("bytes", answer["detail"])
        small = {**body, "bytes": 1000}
        daemon.capture(**small)
        status, answer = daemon.request("POST", "/captures", json.dumps(small).encode())
        self.assertEqual(status, 503)
        self.assertIn("2 running", answer["detail"])

    def test_stop_keeps_what_there_is(self) -> None:
        """At SIGTERM a running capture ends with what it has, and is delivered; the exit status is 0."""
        daemon = self.daemon()
        capture = daemon.capture(interface=[self.wire.interface], timeout=60)
        self.wire.send([udp_frame(number) for number in range(10)])
        self.has_packets(daemon, capture, 10)
        daemon.signal(signal.SIGTERM)
        daemon.signal(signal.SIGHUP)
        self.assertEqual(daemon.wait(), 0)
        self.assertIn(f"{capture}: stopped, as the daemon is stopping: 10 packets", daemon.log)
        self.assertEqual(len(read_packets(daemon.file_of(capture))), 10)

    def test_packet_debug(self) -> None:
        """C{packetdebug} logs a line for each packet."""
        daemon = self.daemon()
        capture = daemon.capture(
            interface=[self.wire.interface], packets=3, packetdebug=True, logrequest=True
        )
        self.wire.send([udp_frame(number, port=53) for number in range(3)])
        daemon.done(capture)
        self.assertEqual(daemon.logged_times("UDP 192.0.2.1:40000 > 198.51.100.1:53, 128 bytes", 3), 3)
        daemon.logged("request from http")
