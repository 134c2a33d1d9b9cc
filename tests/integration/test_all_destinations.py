"""One request, all destinations at once, and one of them down."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from peers.cloudshark import CloudSharkServer
from peers.daemon import Daemon
from peers.frames import udp_frame
from peers.pcapng import read_pcapng
from peers.put import PutServer
from peers.s3 import shared_server
from peers.ssh import SftpServer
from peers.wire import Wire
from tests.faults.relay import Cut, Relay
from tests.integration.test_forms import decompressed
from tests.unit.test_metrics import parse

shared_peer = "S3 server"

_PACKETS = 20
# How each destination has its files.
_FORMS = {
    "local": ".pcapng.zst",
    "cloudshark": ".pcapng.gz",
    "s3": ".pcapng.zst",
    "puturl": ".pcapng.gz",
    "webhook": ".pcapng",
    "sftp": ".pcapng.gz",
}
_COUNTED = "pcapsvc_delivery_attempts_total"


class AllDestinationsTests(SynchronousTestCase):
    """A directory, CloudShark, S3, a URL of the request, a webhook, and SFTP."""

    def setUp(self) -> None:
        """Start them. Those that share a server are behind relays, so that each can be down by itself."""
        self.wire, self.cloudshark, self.sftp, self.server = (
            Wire(),
            CloudSharkServer(),
            SftpServer(),
            PutServer(),
        )
        self.s3 = shared_server()
        self.relays = {
            "s3": Relay(int(self.s3.endpoint.rpartition(":")[2])),
            "puturl": Relay(self.server.port),
            "webhook": Relay(self.server.port),
        }
        for peer in (self.wire, self.cloudshark, self.sftp, self.server, *self.relays.values()):
            self.addCleanup(peer.stop)
            peer.start()
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        (self.directory / "spool").mkdir(mode=0o700)
        self.daemon = Daemon(self.configuration(), general='format = "pcapng"\nlocalcompress = "zstd"')
        self.addCleanup(self.daemon.stop)
        self.daemon.start()

    def configuration(self) -> str:
        """All destinations but the directory."""
        cloudshark, s3, sftp = self.cloudshark, self.s3, self.sftp
        ports = {name: relay.port for name, relay in self.relays.items()}
        hosts = [f"{host}:{ports['puturl']}" for host in ("localhost", "127.0.0.1", "[::1]")]
        return (
            f'[delivery]\nspooldir = "{self.directory}/spool"\nattempts = 1\nretryinterval = 1\n'
            f'[cloudshark]\nupload = true\nhost = "localhost"\nport = {cloudshark.port}\n'
            f'token = "{cloudshark.token}"\nverify = "{cloudshark.ca_file}"\ncompress = "gzip"\n'
            f'[s3]\nupload = true\naccessid = "{s3.access_key}"\naccesskey = "{s3.secret_key}"\n'
            f'endpoint = "http://127.0.0.1:{ports["s3"]}"\nbucket = "{s3.bucket}"\nregion = "us-east-1"\n'
            f'folder = "{{node}}"\ncompress = "zstd"\n'
            f'[puturl]\nallow = {json.dumps(hosts)}\ncafile = "{self.server.ca_file}"\ncompress = "gzip"\n'
            f"[webhook]\nupload = true\n"
            f'url = "https://localhost:{ports["webhook"]}/hook?sig={self.server.signature}"\n'
            f'verify = "{self.server.ca_file}"\n'
            f'[sftp]\nupload = true\nhost = "127.0.0.1"\nport = {sftp.port}\nuser = "{sftp.user}"\n'
            f'keyfile = "{sftp.key_file}"\nhostkey = {json.dumps(sftp.host_keys["ed25519"])}\n'
            f'directory = "{sftp.directory}/{{node}}"\ncompress = "gzip"\n'
        )

    def capture(self) -> tuple[str, list[dict[str, Any]]]:
        """
        A capture, until each delivery is decided.

        @return: its id, and the events of its deliveries. In no event and no line of the log is a signature.
        """
        events: list[dict[str, Any]] = []
        url = f"http://127.0.0.1:{self.daemon.port}/events"
        server = f"https://localhost:{self.relays['puturl'].port}"
        with urllib.request.urlopen(url, timeout=60) as stream:
            listener = threading.Thread(target=_read_events, args=(stream, events))
            listener.start()
            capture_id = self.daemon.capture(
                interface=[self.wire.interface],
                packets=_PACKETS,
                bpf="udp port 9",
                puturl=f"{server}/dav/{{node}}-{{id}}.pcapng.gz?sig={self.server.signature}",
            )
            self.wire.send([udp_frame(number) for number in range(_PACKETS)])
            self.daemon.done(capture_id)
            listener.join(60)
        for text in (json.dumps(events), self.daemon.log):
            self.assertNotIn(self.server.signature, text)
        deliveries = [each for each in events if "destination" in each["data"]]
        return capture_id, [
            each
            for each in deliveries
            if each["subject"] == capture_id and not each["type"].endswith("postponed")
        ]

    def files(self, capture_id: str) -> dict[str, tuple[str, bytes]]:
        """The name and the bytes of what each destination has of a capture."""
        found: dict[str, tuple[str, bytes]] = {}
        for path in self.daemon.captures.glob(f"[!.]*{capture_id}*"):
            found["local"] = (path.name, path.read_bytes())
        for upload in self.cloudshark.uploads():
            if upload.filename is not None and capture_id in upload.filename:
                found["cloudshark"] = (upload.filename, upload.data)
        stored = self.s3.keys()
        for key in stored:
            if capture_id in key:
                self.assertTrue(key.startswith("node-1/"), key)
                found["s3"] = (key, self.s3.get(key)[0])
        for name, data in self.server.files().items():
            if capture_id in name:
                found["webhook" if name.startswith("/hook/") else "puturl"] = (name, data)
        for path in (self.sftp.directory / "node-1").glob(f"[!.]*{capture_id}*"):
            found["sftp"] = (path.name, path.read_bytes())
        return found

    def assert_same(self, files: dict[str, tuple[str, bytes]], *names: str) -> None:
        """These destinations have the capture, each in its form, and the same after decompression."""
        forms = {name: file[file.index(".pcap") :] for name, (file, _) in files.items()}
        self.assertEqual(forms, {name: _FORMS[name] for name in names})
        [whole] = {decompressed(name, data) for name, data in files.values()}
        packets = [packet.data for packet in read_pcapng(whole).packets]
        self.assertEqual(packets, [udp_frame(number) for number in range(_PACKETS)])

    def until_counted(self, expected: Counter[tuple[str, str]], down: str | None = None) -> None:
        """
        Wait until these attempts are counted, and no others but failed ones.

        @param expected: how many, by destination and outcome.
        @param down: the destination to which attempts failed.
        """

        def is_counted() -> bool | None:
            url = f"http://127.0.0.1:{self.daemon.port}/metrics"
            with urllib.request.urlopen(url, timeout=60) as answer:
                series = parse(answer.read().decode())
            found = {
                (dict(labels)["destination"], dict(labels)["outcome"]): value
                for (name, labels), value in series.items()
                if name == _COUNTED and value
            }
            # From the spool, it is tried again sooner or later.
            failed = {key: found.pop(key) for key in [*found] if key[0] == down and key[1] != "delivered"}
            has_failed = down is None or (down, "spooled") in failed
            return (has_failed and found == expected) or None

        self.daemon.until(is_counted, f"the metrics {expected}")

    def test_all(self) -> None:
        """Each has the same packets in its own form, its event and its metric."""
        capture_id, events = self.capture()
        files = self.files(capture_id)
        self.assert_same(files, *_FORMS)
        self.assertEqual(
            sorted((each["type"], each["data"]["destination"]) for each in events),
            sorted(("pcapsvc.delivery.delivered", name) for name in _FORMS),
        )
        self.until_counted(Counter({(name, "delivered"): 1 for name in _FORMS}))

    def test_one_down(self) -> None:
        """With one of them down, the others have the capture at once; that one has it after a restart."""
        aside = self.directory / "aside"
        downs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "local": (
                lambda: self.daemon.captures.rename(aside),
                lambda: aside.rename(self.daemon.captures),
            ),
            "cloudshark": (self.cloudshark.end, self.cloudshark.start),
            "sftp": (self.sftp.end, self.sftp.start),
            **{
                name: (partial(_cut, relay, Cut(sent_bytes=0)), partial(_cut, relay, None))
                for name, relay in self.relays.items()
            },
        }
        self.assertEqual({*downs}, {*_FORMS})
        before: Counter[tuple[str, str]] = Counter()
        for down, (break_it, mend_it) in downs.items():
            break_it()
            capture_id, events = self.capture()
            others = [name for name in _FORMS if name != down]
            self.assert_same(self.files(capture_id), *others)
            kinds = {each["data"]["destination"]: each["type"] for each in events}
            self.assertEqual(kinds.pop(down), "pcapsvc.delivery.spooled")
            self.assertEqual(kinds, dict.fromkeys(others, "pcapsvc.delivery.delivered"))
            self.until_counted(before + Counter({(name, "delivered"): 1 for name in others}), down)
            self.daemon.end()
            mend_it()
            self.daemon.start()
            self.daemon.logged(f"{capture_id}: delivered to {down}")
            self.assert_same(self.files(capture_id), *_FORMS)
            before = Counter({(down, "delivered"): 1})
            self.until_counted(before)


def _cut(relay: Relay, cut: Cut | None) -> None:
    relay.cut = cut


def _read_events(stream: Any, events: list[dict[str, Any]]) -> None:
    """Read events until a capture is done."""
    for line in stream:
        if line.startswith(b"data: "):
            event = json.loads(line[6:])
            events.append(event)
            if event["type"] == "pcapsvc.capture.done":
                return
