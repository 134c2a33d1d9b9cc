"""One request, all destinations at once, and one of them down."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from peers.cloudshark import CloudSharkServer
from peers.daemon import Daemon
from peers.frames import udp_frame
from peers.s3 import S3Server
from peers.ssh import SftpServer
from peers.wire import Wire
from tests.faults.relay import Cut, Relay
from tests.unit.test_metrics import parse

_PACKETS = 20
_ALL = ("local", "cloudshark", "s3", "puturl", "sftp")


class AllDestinationsTests(SynchronousTestCase):
    """A directory, CloudShark, S3, a URL of the request, and SFTP."""

    def setUp(self) -> None:
        """Start them."""
        self.wire, self.cloudshark, self.s3, self.sftp = Wire(), CloudSharkServer(), S3Server(), SftpServer()
        for peer in (self.wire, self.cloudshark, self.s3, self.sftp):
            self.addCleanup(peer.stop)
            peer.start()
        self.s3.make_bucket("signed")
        s3_port = int(self.s3.endpoint.rpartition(":")[2])
        self.relay = Relay(s3_port)
        self.addCleanup(self.relay.stop)
        self.relay.start()
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        spool = self.directory / "spool"
        spool.mkdir(mode=0o700)
        cloudshark, s3, sftp = self.cloudshark, self.s3, self.sftp
        self.daemon = Daemon(
            f'[delivery]\nspooldir = "{spool}"\nattempts = 1\nretryinterval = 1\n'
            f'[cloudshark]\nupload = true\nhost = "localhost"\nport = {cloudshark.port}\n'
            f'token = "{cloudshark.token}"\nverify = "{cloudshark.ca_file}"\n'
            f'[s3]\nupload = true\naccessid = "{s3.access_key}"\naccesskey = "{s3.secret_key}"\n'
            f'endpoint = "http://127.0.0.1:{self.relay.port}"\nbucket = "{s3.bucket}"\nregion = "us-east-1"\n'
            f'folder = "{{node}}"\n'
            f'[puturl]\nallow = ["127.0.0.1:{s3_port}"]\ninsecure = true\n'
            f'[sftp]\nupload = true\nhost = "127.0.0.1"\nport = {sftp.port}\nuser = "{sftp.user}"\n'
            f'keyfile = "{sftp.key_file}"\nhostkey = {json.dumps(sftp.host_keys["ed25519"])}\n'
            f'directory = "{sftp.directory}/{{node}}"\n'
        )
        self.addCleanup(self.daemon.stop)
        self.daemon.start()

    def capture(self, key: str) -> tuple[str, list[dict[str, Any]]]:
        """
        A capture, until each delivery is decided.

        @return: its id, and the events of its deliveries.
        """
        events: list[dict[str, Any]] = []
        url = f"http://127.0.0.1:{self.daemon.port}/events"
        with urllib.request.urlopen(url, timeout=60) as stream:
            listener = threading.Thread(target=_read_events, args=(stream, events))
            listener.start()
            capture_id = self.daemon.capture(
                interface=[self.wire.interface],
                packets=_PACKETS,
                bpf="udp port 9",
                puturl=self.s3.with_bucket(f"signed-{key}").presigned(key),
            )
            self.wire.send([udp_frame(number) for number in range(_PACKETS)])
            self.daemon.done(capture_id)
            listener.join(60)
        return capture_id, [each for each in events if each["subject"] == capture_id]

    def files(self, capture_id: str, key: str) -> dict[str, bytes]:
        """What each destination has of a capture."""
        found = {}
        if self.daemon.captures.exists():
            for path in self.daemon.captures.glob(f"*{capture_id}*"):
                found["local"] = path.read_bytes()
        for upload in self.cloudshark.uploads():
            if upload.filename is not None and capture_id in upload.filename:
                found["cloudshark"] = upload.data
        stored_there = self.s3.keys()
        for stored in stored_there:
            if capture_id in stored:
                self.assertTrue(stored.startswith("node-1/"), stored)
                found["s3"] = self.s3.get(stored)[0]
        if self.s3.keys(f"signed-{key}"):
            found["puturl"] = self.s3.get(key, f"signed-{key}")[0]
        for path in (self.sftp.directory / "node-1").glob(f"*{capture_id}*"):
            found["sftp"] = path.read_bytes()
        return found

    def counts(self) -> dict[tuple[str, str], float]:
        """The attempts that are counted, by destination and outcome."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.daemon.port}/metrics", timeout=10) as answer:
            series = parse(answer.read().decode())
        return {
            (dict(labels)["destination"], dict(labels)["outcome"]): value
            for (name, labels), value in series.items()
            if name == "pcapsvc_delivery_attempts_total" and value
        }

    def test_all(self) -> None:
        """Each has the same bytes, its event and its metric."""
        capture_id, events = self.capture("all")
        files = self.files(capture_id, "all")
        self.assertEqual({*files}, {*_ALL})
        self.assertEqual(len({*files.values()}), 1)
        self.assertEqual(
            sorted((each["type"], each["data"]["destination"]) for each in events),
            sorted(("pcapsvc.delivery.delivered", name) for name in _ALL),
        )
        self.assertEqual(self.counts(), {(name, "delivered"): 1 for name in _ALL})

    def test_one_down(self) -> None:
        """The others have the capture at once; the one that was down gets it after a restart."""

        def cut(what: Cut | None) -> Callable[[], None]:
            return lambda: setattr(self.relay, "cut", what)

        downs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "sftp": (self.sftp.end, self.sftp.start),
            "cloudshark": (self.cloudshark.end, self.cloudshark.start),
            "s3": (cut(Cut(sent_bytes=0)), cut(None)),
            "local": (
                lambda: self.daemon.captures.rename(self.directory / "aside"),
                lambda: (self.directory / "aside").rename(self.daemon.captures),
            ),
        }
        for down, (break_it, mend_it) in downs.items():
            break_it()
            capture_id, events = self.capture(down)
            others = {*_ALL} - {down}
            files = self.files(capture_id, down)
            self.assertEqual({*files}, others, down)
            kinds = {each["data"]["destination"]: each["type"] for each in events}
            self.assertEqual(kinds.pop(down), "pcapsvc.delivery.spooled")
            self.assertEqual(kinds, dict.fromkeys(others, "pcapsvc.delivery.delivered"))
            counts = self.counts()
            self.assertGreaterEqual(counts[down, "spooled"], 1)
            self.assertEqual({counts[name, "delivered"] for name in others}, {1})
            self.daemon.end()
            mend_it()
            self.daemon.start()
            self.daemon.logged(f"{capture_id}: delivered to {down}")
            files = self.files(capture_id, down)
            self.assertEqual({*files}, {*_ALL})
            self.assertEqual(len({*files.values()}), 1)
            self.daemon.restart()


def _read_events(stream: Any, events: list[dict[str, Any]]) -> None:
    """Read events until a capture is done."""
    for line in stream:
        if line.startswith(b"data: "):
            event = json.loads(line[6:])
            if event["type"] == "pcapsvc.capture.done":
                return
            if "destination" in event["data"] and not event["type"].endswith("postponed"):
                events.append(event)
