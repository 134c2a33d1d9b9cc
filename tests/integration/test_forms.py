"""Formats and compression, real at every step: with servers, and with the programs that read the files."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from peers.cloudshark import CloudSharkServer
from peers.daemon import Daemon
from peers.frames import udp_frame
from peers.pcapng import read_pcapng
from peers.requirement import require_command
from peers.s3 import shared_server
from peers.tcpdump import read_packets, tshark_complaint
from peers.wire import Wire
from tests.unit.test_metrics import parse

_PACKETS = 200
_SUFFIXES = {".gz": "gzip", ".zst": "zstd"}


def decompressed(name: str, data: bytes) -> bytes:
    """A file as it was before, by the program that people use for files of such a name."""
    program = _SUFFIXES.get(Path(name).suffix)
    if program is None:
        return data
    command = [require_command(program, program), "-dc"]
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True, timeout=120).stdout


class FormsCase(SynchronousTestCase):
    """A wire, S3 and CloudShark."""

    def setUp(self) -> None:
        """Start them."""
        self.wire, self.cloudshark, self.s3 = Wire(), CloudSharkServer(), shared_server()
        for peer in (self.wire, self.cloudshark):
            self.addCleanup(peer.stop)
            peer.start()

    def daemon(self, more: str = "", *, general: str = "", retain_bytes: int = 0, **forms: str) -> Daemon:
        """
        A daemon with all destinations, started.

        @param forms: how each destination wants its files.
        """
        cloudshark, s3 = self.cloudshark, self.s3
        daemon = Daemon(
            f'{more}\n[cloudshark]\nupload = true\nhost = "localhost"\nport = {cloudshark.port}\n'
            f'token = "{cloudshark.token}"\nverify = "{cloudshark.ca_file}"\n'
            f'compress = "{forms.get("cloudshark", "none")}"\n'
            f'[s3]\nupload = true\naccessid = "{s3.access_key}"\naccesskey = "{s3.secret_key}"\n'
            f'endpoint = "{s3.endpoint}"\nbucket = "{s3.bucket}"\nregion = "us-east-1"\n'
            f'compress = "{forms.get("s3", "none")}"\n',
            retain_bytes=retain_bytes,
            general=f'localcompress = "{forms.get("local", "none")}"\n{general}',
        )
        self.addCleanup(daemon.stop)
        daemon.start()
        return daemon

    def capture(self, daemon: Daemon, **fields: Any) -> str:
        """A capture of numbered packets."""
        options = {"interface": [self.wire.interface], "packets": _PACKETS, "bpf": "udp port 9", **fields}
        capture_id = daemon.capture(**options)
        self.wire.send([udp_frame(number) for number in range(_PACKETS)])
        return capture_id

    def files(self, daemon: Daemon, capture_id: str) -> dict[str, tuple[str, bytes]]:
        """The name and the bytes of the file that each destination has of a capture."""
        found: dict[str, tuple[str, bytes]] = {}
        for path in daemon.captures.glob(f"*{capture_id}*"):
            found["local"] = (path.name, path.read_bytes())
        for upload in self.cloudshark.uploads():
            if upload.filename is not None and capture_id in upload.filename:
                found["cloudshark"] = (upload.filename, upload.data)
        stored = self.s3.keys()
        for key in stored:
            if capture_id in key:
                found["s3"] = (key, self.s3.get(key)[0])
        return found

    def assert_same(self, files: dict[str, tuple[str, bytes]], **suffixes: str) -> bytes:
        """Every destination has a file of its kind, and all are the same after decompression. Return it."""
        self.assertEqual({name: re.sub(r"\A[^.]*", "", file) for name, (file, _) in files.items()}, suffixes)
        whole = {decompressed(file, data) for file, data in files.values()}
        self.assertEqual(len(whole), 1)
        return whole.pop()


class EverywhereTests(FormsCase):
    """One request, and all destinations at once."""

    def test_defaults(self) -> None:
        """
        Each destination has the capture as it wants it: in one format, compressed or not, the same packets.
        Each has its event and its metric, and S3 the type of what is stored.
        """
        daemon = self.daemon(general='format = "pcapng"', local="gzip", s3="zstd")
        capture_id = self.capture(daemon)
        state = daemon.done(capture_id)
        files = self.files(daemon, capture_id)
        whole = self.assert_same(files, local=".pcapng.gz", s3=".pcapng.zst", cloudshark=".pcapng")
        found = read_pcapng(whole)
        self.assertEqual([packet.data for packet in found.packets], [udp_frame(n) for n in range(_PACKETS)])
        self.assertIsNone(tshark_complaint(daemon.captures / files["local"][0]))
        types = {"local": "application/gzip", "s3": "application/zstd", "cloudshark": "application/x-pcapng"}
        self.assertEqual(
            {
                each["destination"]: [each[key] for key in ("state", "file", "media_type", "bytes")]
                for each in state["deliveries"]
            },
            {name: ["delivered", file, types[name], len(data)] for name, (file, data) in files.items()},
        )
        head = self.s3.get(files["s3"][0])[2]
        self.assertEqual((head["ContentType"], head.get("ContentEncoding")), ("application/zstd", None))
        self.assert_counted(daemon, dict.fromkeys(files, 1))

    def assert_counted(self, daemon: Daemon, delivered: dict[str, int]) -> None:
        """So many attempts are counted."""

        def counted() -> bool | None:
            url = f"http://127.0.0.1:{daemon.port}/metrics"
            with urllib.request.urlopen(url, timeout=60) as answer:
                series = parse(answer.read().decode())
            labels = {name: (("destination", name), ("outcome", "delivered")) for name in delivered}
            found = {
                name: series.get(("pcapsvc_delivery_attempts_total", labels[name]), 0) for name in delivered
            }
            return found == delivered or None

        daemon.until(counted, "the metrics of each delivery")

    def test_asked(self) -> None:
        """A request decides for all of them; CloudShark, which has no zstd, gets gzip, with a warning."""
        daemon = self.daemon(local="gzip")
        message = {
            "node": daemon.node,
            "interface": [self.wire.interface],
            "packets": _PACKETS,
            "bpf": "udp port 9",
            "format": "pcap",
            "compress": "zstd",
        }
        status, answer = daemon.request("POST", "/captures", json.dumps(message).encode())
        self.assertEqual(status, 202, answer)
        [warning] = answer["warnings"]
        self.assertEqual((warning["path"], warning["value"]), ("compress", '"zstd"'))
        daemon.logged("can't be read by cloudshark, which gets gzip")
        [capture] = answer["captures"]
        self.wire.send([udp_frame(number) for number in range(_PACKETS)])
        daemon.done(capture["id"])
        files = self.files(daemon, capture["id"])
        whole = self.assert_same(files, local=".pcap.zst", s3=".pcap.zst", cloudshark=".pcap.gz")
        path = Path(self.mktemp()).absolute()
        path.write_bytes(whole)
        self.assertEqual(
            [packet.data for packet in read_packets(path)], [udp_frame(n) for n in range(_PACKETS)]
        )

    def test_unknown_format(self) -> None:
        """A format that the node doesn't have is a problem of the request, which names those that it has."""
        daemon = self.daemon()
        message = {"node": daemon.node, "interface": [self.wire.interface], "format": "erf"}
        status, answer = daemon.request("POST", "/captures", json.dumps(message).encode())
        self.assertEqual(status, 400)
        self.assertIn('format = "erf": must be one of pcap, pcapng on this node', answer["detail"])

    def test_fetched(self) -> None:
        """What is no longer in memory is fetched as it was delivered, with its name and type, or in parts."""
        daemon = self.daemon(local="gzip")
        capture_id = self.capture(daemon)
        daemon.done(capture_id)
        name, data = self.files(daemon, capture_id)["local"]
        url = f"http://127.0.0.1:{daemon.port}/captures/{capture_id}/pcap"
        with urllib.request.urlopen(url, timeout=60) as answer:
            self.assertEqual(answer.read(), data)
            self.assertEqual(answer.headers["Content-Type"], "application/gzip")
            self.assertIn(f'filename="{name}"', answer.headers["Content-Disposition"])
            self.assertIsNone(answer.headers["Content-Encoding"])
            etag = answer.headers["ETag"]
        headers = {"Range": "bytes=10-19", "If-Range": etag}
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
            self.assertEqual((answer.status, answer.read()), (206, data[10:20]))

    def test_recording_and_file(self) -> None:
        """As long as a capture is in memory, its recording is there beside the file that was delivered."""
        daemon = self.daemon(local="zstd", retain_bytes=1 << 20)
        capture_id = self.capture(daemon, format="pcapng")
        daemon.done(capture_id)
        url = f"http://127.0.0.1:{daemon.port}/captures/{capture_id}/pcap"
        with urllib.request.urlopen(url, timeout=60) as answer:
            self.assertEqual(answer.headers["Content-Type"], "application/vnd.tcpdump.pcap")
            self.assertIn('.pcap"', answer.headers["Content-Disposition"])
            self.assertEqual(answer.read(4), b"\xd4\xc3\xb2\xa1")
        name, data = self.files(daemon, capture_id)["local"]
        with urllib.request.urlopen(f"{url}?delivered=1", timeout=60) as answer:
            self.assertEqual(answer.headers["Content-Type"], "application/zstd")
            self.assertIn(f'filename="{name}"', answer.headers["Content-Disposition"])
            self.assertEqual(answer.read(), data)


class DownTests(FormsCase):
    """One destination is down, and there is a spool."""

    def test_restarted(self) -> None:
        """
        The others have the capture at once. The one that is down gets it from the spool after a restart, in
        the form that it was to have.
        """
        spool = Path(self.mktemp()).absolute()
        spool.mkdir(mode=0o700)
        self.cloudshark.end()
        daemon = self.daemon(
            f'[delivery]\nspooldir = "{spool}"\nattempts = 1\nretryinterval = 1\n',
            local="zstd",
            cloudshark="gzip",
        )
        capture_id = self.capture(daemon)
        state = daemon.done(capture_id)
        self.assertEqual(
            {each["destination"]: each["state"] for each in state["deliveries"]},
            {"local": "delivered", "s3": "delivered", "cloudshark": "spooled"},
        )
        self.assertEqual({*self.files(daemon, capture_id)}, {"local", "s3"})
        [entry] = spool.glob("*-cloudshark")
        manifest = json.loads((entry / "manifest.json").read_text())
        self.assertEqual((manifest["name"][-8:], manifest["media_type"]), (".pcap.gz", "application/gzip"))
        spooled = (entry / "capture.pcap").read_bytes()
        self.assertEqual(spooled[:2], b"\x1f\x8b")
        daemon.end()
        self.cloudshark.start()
        daemon.start()
        daemon.logged(f"{capture_id}: delivered to cloudshark")
        files = self.files(daemon, capture_id)
        self.assert_same(files, local=".pcap.zst", s3=".pcap", cloudshark=".pcap.gz")
        self.assertEqual(files["cloudshark"], (manifest["name"], spooled))
