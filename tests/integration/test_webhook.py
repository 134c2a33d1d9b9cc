"""Webhooks, with the daemon in a process of its own, and an HTTPS server."""

from __future__ import annotations

import hashlib
import hmac
import json
import urllib.request
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from peers.daemon import Daemon
from peers.frames import udp_frame
from peers.put import PutServer, answer, store
from peers.wire import Wire

_SECRET, _TOKEN = "hush-hush-bodies", "hush-hush-headers"


class WebhookDaemonTests(SynchronousTestCase):
    """A daemon, a wire, and a server that stores what is posted to it."""

    def setUp(self) -> None:
        self.wire = Wire()
        self.addCleanup(self.wire.stop)
        self.wire.start()
        self.server = PutServer()
        self.addCleanup(self.server.stop)
        self.server.start()
        self.path = Path(self.mktemp()).absolute()
        (self.path / "spool").mkdir(parents=True, mode=0o700)
        (self.path / "secret").write_text(f"{_SECRET}\n")
        (self.path / "headers").write_text(f"Authorization: Bearer {_TOKEN}\n")

    def daemon(self, more: str = "") -> Daemon:
        """A daemon with a webhook, which also puts captures to URLs."""
        port = self.server.port
        daemon = Daemon(
            f'[webhook]\nupload = true\nurl = "{self.server.url("hook")}"\nverify = "{self.server.ca_file}"\n'
            f'secretfile = "{self.path}/secret"\nheadersfile = "{self.path}/headers"\n{more}\n'
            f'[puturl]\nallow = ["localhost:{port}", "127.0.0.1:{port}", "[::1]:{port}"]\n'
            f'cafile = "{self.server.ca_file}"\n'
            f'[delivery]\nattempts = 2\nmaxdelay = 1\nretryinterval = 1\nspooldir = "{self.path}/spool"\n'
        )
        self.addCleanup(daemon.stop)
        daemon.start()
        return daemon

    def captured(self, daemon: Daemon, **message: Any) -> dict[str, Any]:
        """The last state of a capture of five packets."""
        capture = daemon.capture(interface=[self.wire.interface], packets=5, bpf="udp port 9", **message)
        self.wire.send([udp_frame(number, port=9) for number in range(5)])
        return daemon.done(capture)

    def deliveries(self, state: dict[str, Any]) -> dict[str, Any]:
        return {one["destination"]: one for one in state["deliveries"]}

    def assert_signed(self, request: Any) -> None:
        signature = hmac.new(_SECRET.encode(), request.data, hashlib.sha256).hexdigest()
        self.assertEqual(request.headers["x-pcapsvc-signature-256"], f"sha256={signature}")
        self.assertEqual(request.headers["authorization"], f"Bearer {_TOKEN}")

    def assert_no_secret(self, daemon: Daemon, *others: object) -> None:
        for text in (daemon.log, *map(repr, others)):
            for secret in (_SECRET, _TOKEN, self.server.signature):
                self.assertNotIn(secret, text)

    def test_all_at_once(self) -> None:
        """One request delivers to the directory, the webhook and a URL: the same bytes, each counted."""
        daemon = self.daemon()
        state = self.captured(daemon, puturl=self.server.url("dav/{id}.pcap"))
        deliveries = self.deliveries(state)
        self.assertEqual({one["state"] for one in deliveries.values()}, {"delivered"})
        self.assertEqual(set(deliveries), {"local", "webhook", "puturl"})
        self.assertEqual(deliveries["webhook"]["location"], f"https://localhost:{self.server.port}")
        file = daemon.file_of(state["id"])
        self.assertEqual(
            self.server.files(),
            {f"/hook/{file.name}": file.read_bytes(), f"/dav/{state['id']}.pcap": file.read_bytes()},
        )
        [posted] = [request for request in self.server.requests() if request.method == "POST"]
        self.assert_signed(posted)
        self.assertEqual(posted.headers["x-pcapsvc-interface"], self.wire.interface)
        self.assertEqual(posted.headers["idempotency-key"], f"{state['id']}-webhook")
        with urllib.request.urlopen(f"http://127.0.0.1:{daemon.port}/metrics", timeout=60) as response:
            metrics = response.read().decode()
        for name in ("local", "webhook", "puturl"):
            series = f'pcapsvc_delivery_attempts_total{{destination="{name}",outcome="delivered"}} 1.0'
            self.assertIn(series, metrics)
        self.assert_no_secret(daemon, state, metrics)

    def test_event(self) -> None:
        """Only an event is posted, which names the file."""
        daemon = self.daemon('send = "event"')
        state = self.captured(daemon, requestid="r-1", compress="gzip")
        [request] = self.server.requests()
        self.assert_signed(request)
        document = json.loads(request.data)
        self.assertEqual((document["type"], document["subject"]), ("pcapsvc.capture.file", state["id"]))
        self.assertEqual(document["data"]["requestid"], "r-1")
        self.assertTrue(document["data"]["file"].endswith(f"-{state['id']}.pcap"))

    def test_down(self) -> None:
        """With the endpoint down, the others have the capture; the endpoint, after a restart, as well."""
        daemon = self.daemon()
        self.server.behave(answer(503))
        state = self.captured(daemon)
        deliveries = self.deliveries(state)
        self.assertEqual(
            (deliveries["local"]["state"], deliveries["webhook"]["state"]), ("delivered", "spooled")
        )
        daemon.end()
        self.server.behave(store())
        daemon.start()
        daemon.until(lambda: self.server.files() or None, "the file")
        file = daemon.file_of(state["id"])
        self.assertEqual(self.server.files(), {f"/hook/{file.name}": file.read_bytes()})
        self.assertEqual(len({request.headers["idempotency-key"] for request in self.server.requests()}), 1)
        self.assert_no_secret(daemon, state)
