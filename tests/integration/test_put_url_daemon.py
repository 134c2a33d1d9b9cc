"""URLs that requests supply, with the daemon in a process of its own: from the request to the file."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from peers.daemon import Daemon
from peers.frames import udp_frame
from peers.put import PutServer, answer, store
from peers.wire import Wire

_SIGNATURE = "s3cr3tS1gnature"


class PutUrlDaemonTests(SynchronousTestCase):
    """A daemon, a wire, and a server that stores what is put to it."""

    def setUp(self) -> None:
        self.wire = Wire()
        self.addCleanup(self.wire.stop)
        self.wire.start()
        self.server = PutServer(signature=_SIGNATURE)
        self.addCleanup(self.server.stop)
        self.server.start()
        self.spool = Path(self.mktemp()).absolute()
        self.spool.mkdir(mode=0o700)

    def daemon(self, *allow: str) -> Daemon:
        """A daemon that allows these hosts."""
        daemon = Daemon(
            f'[puturl]\nallow = {json.dumps(allow)}\ncafile = "{self.server.ca_file}"\n'
            f'[delivery]\nattempts = 2\nmaxdelay = 1\nretryinterval = 1\nspooldir = "{self.spool}"\n',
            general="logrequests = true",
        )
        self.addCleanup(daemon.stop)
        daemon.start()
        return daemon

    def allowed(self) -> tuple[str, str, str]:
        port = self.server.port
        return (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}")

    def captured(self, daemon: Daemon, **message: Any) -> dict[str, Any]:
        """The last state of a capture of five packets."""
        capture = daemon.capture(interface=[self.wire.interface], packets=5, bpf="udp port 9", **message)
        self.wire.send([udp_frame(number, port=9) for number in range(5)])
        return daemon.done(capture)

    def deliveries(self, state: dict[str, Any]) -> dict[str, Any]:
        return {one["destination"]: one for one in state["deliveries"]}

    def assert_no_secret(self, daemon: Daemon, *others: object) -> None:
        """Neither the log nor what the API has, has the query."""
        answers = [daemon.request("GET", path)[1] for path in ("/captures", "/node")]
        for text in (daemon.log, *map(repr, answers), *map(repr, others)):
            self.assertNotIn(_SIGNATURE, text)

    def test_delivered(self) -> None:
        """
        A capture is put to the URL of its request, beside the local directory; one without a URL, only there.
        Nobody but the server learns the query, although requests are logged.
        """
        daemon = self.daemon(*self.allowed())
        state = self.captured(
            daemon, puturl=self.server.url("dav/{node}-{interface}-{id}.pcap"), logrequest=True
        )
        deliveries = self.deliveries(state)
        path = f"/dav/node-1-{self.wire.interface}-{state['id']}.pcap"
        self.assertEqual(deliveries["puturl"]["location"], f"https://localhost:{self.server.port}{path}")
        self.assertEqual(self.server.files(), {path: daemon.file_of(state["id"]).read_bytes()})
        daemon.logged('"puturl": "<secret>"')
        self.assertEqual(set(self.deliveries(self.captured(daemon))), {"local"})
        self.assert_no_secret(daemon, state)

    def test_down(self) -> None:
        """With the server down, the local directory has the capture; the server, after a restart, as well."""
        daemon = self.daemon(*self.allowed())
        self.server.behave(answer(503))
        state = self.captured(daemon, puturl=self.server.url("a.pcap"))
        deliveries = self.deliveries(state)
        self.assertEqual(deliveries["local"]["state"], "delivered")
        self.assertEqual(deliveries["puturl"]["state"], "spooled")
        [manifest] = self.spool.glob("*-puturl/manifest.json")
        self.assertEqual(stat.S_IMODE(manifest.stat().st_mode), 0o600)
        self.assertIn(_SIGNATURE, manifest.read_text())
        self.assert_no_secret(daemon, state)
        daemon.end()
        self.server.behave(store())
        daemon.start()
        daemon.until(lambda: self.server.files() or None, "the file")
        self.assertEqual(self.server.files(), {"/a.pcap": daemon.file_of(state["id"]).read_bytes()})
        self.assert_no_secret(daemon)

    def test_rejected(self) -> None:
        """A request that names another host, or breaks a rule, is rejected; its query is shown nowhere."""
        daemon = self.daemon("*.example.com")
        for url in (
            self.server.url("a.pcap"),
            f"ftp://a.example.com/a?sig={_SIGNATURE}",
            f"a.example.com/a?sig={_SIGNATURE}",
            [f"https://a.example.com/a?sig={_SIGNATURE}"],
        ):
            for key in ("puturl", "PutUrl", "put_url"):
                body = {"node": "any", "interface": ["lo"], key: url, "logrequest": True}
                status, problem = daemon.request("POST", "/captures", json.dumps(body).encode())
                self.assertEqual(status, 400)
                self.assert_no_secret(daemon, problem)

    def test_pcapctl(self) -> None:
        """pcapctl takes the URL from the environment, and shows no query in any of its outputs."""
        daemon = self.daemon(*self.allowed())
        command = [sys.executable, "-m", "pcapsvc.client", "capture"]
        command += [
            "--via",
            f"http://127.0.0.1:{daemon.port}",
            "-i",
            self.wire.interface,
            "-c",
            "5",
            "--wait",
        ]
        for number, more in enumerate(([], ["--json"])):
            url = self.server.url(f"{number}-{{id}}.pcap")
            process = subprocess.Popen(
                [*command, *more, "udp port 9"],
                env={**os.environ, "PCAPCTL_PUTURL": url},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            self.addCleanup(process.kill)
            daemon.until(
                lambda: daemon.request("GET", "/captures?state=capturing")[1]["captures"] or None, "a capture"
            )
            self.wire.send([udp_frame(number, port=9) for number in range(5)])
            output, _ = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 0, output)
            self.assertIn(f"https://localhost:{self.server.port}/{number}-", output)
            self.assert_no_secret(daemon, output)
        self.assertEqual(len(self.server.files()), 2)

    def test_not_public(self) -> None:
        """A name that is allowed, but not its address, is not connected to."""
        daemon = self.daemon(f"localhost:{self.server.port}", "*:*")
        deliveries = self.deliveries(self.captured(daemon, puturl=self.server.url("a.pcap")))
        self.assertIn("has an address that is not public", deliveries["puturl"]["problem"])
        self.assertEqual(self.server.requests(), [])

    def test_disabled(self) -> None:
        """Without allow, a request with a URL is rejected."""
        daemon = self.daemon()
        body = {"node": "any", "interface": ["lo"], "puturl": self.server.url("a")}
        status, problem = daemon.request("POST", "/captures", json.dumps(body).encode())
        self.assertEqual((status, problem["problems"][0]["path"]), (400, "puturl"))
        self.assertIn("puturl.allow is empty", problem["detail"])
        self.assert_no_secret(daemon, problem)
