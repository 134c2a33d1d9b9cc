"""pcapctl as an interface of Wireshark, with the real tshark."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from typing import Any

from peers.requirement import require_command
from tests.integration.pcapctl_case import environment, pcapctl
from tests.integration.test_pcapctl import Traffic
from tests.integration.test_pcapctl_files import FilesTestCase


class ExtcapTests(FilesTestCase):
    """Two nodes in a profile, and a directory with pcapctl in it."""

    def setUp(self) -> None:
        """Set them up, with traffic."""
        super().setUp()
        self.tshark = require_command("tshark", "tshark")
        apis = ", ".join(f'"http://127.0.0.1:{node.port}"' for node in self.nodes)
        (self.directory / "pcapctl.toml").write_text(f"[profiles.lab]\napis = [{apis}]\n")
        # Started by root, Wireshark ignores WIRESHARK_EXTCAP_DIR.
        self.variables = {
            "XDG_CONFIG_HOME": str(self.directory),
            "HOME": str(self.directory),
            "WIRESHARK_EXTCAP_DIR": "",
        }
        installed = pcapctl("install-extcap", **self.variables)
        self.assertEqual(installed.status, 0, installed)
        (self.program,) = installed.lines
        self.assertTrue(self.program.startswith(str(self.directory)))
        self.interface = f"pcapctl:lab:web-1:{self.wire.interface}"
        traffic = Traffic(self.wire)
        self.addCleanup(traffic.stop)

    def run_tshark(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run tshark to its end."""
        return subprocess.run(
            [self.tshark, *words],
            env=environment(**self.variables),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    def captures(self) -> list[dict[str, Any]]:
        """The captures of the first node, the newest first."""
        found: list[dict[str, Any]] = self.nodes[0].request("GET", "/captures")[1]["captures"]
        return found

    def ended(self) -> dict[str, Any]:
        """Wait until the newest capture has ended. Return its state."""
        self.nodes[0].until(lambda: self.captures() or None, "a capture")
        return self.nodes[0].done(self.captures()[0]["id"])

    def test_listed(self) -> None:
        """tshark lists an interface for each interface of each node."""
        listed = self.run_tshark("-D").stdout
        for node in self.nodes:
            name = self.wire.interface
            self.assertIn(f"pcapctl:lab:{node.node}:{name} ({name} on {node.node} (lab))", listed)

    def test_captured(self) -> None:
        """tshark captures; when it stops, so does the capture on the node, which is delivered."""
        done = self.run_tshark(
            "-i", self.interface, "-f", "udp port 9", "-c", "12", "-T", "fields", "-e", "udp.dstport"
        )
        self.assertEqual((done.returncode, done.stdout.split()), (0, ["9"] * 12), done.stderr)
        self.assertNotIn("Traceback", done.stderr)
        state = self.ended()
        self.assertEqual(
            (state["reason"], state["bpf"], state["request"]["tags"]),
            ("cancelled", "udp port 9", "wireshark"),
        )
        self.assertTrue(self.nodes[0].file_of(state["id"]).exists())

    def test_form(self) -> None:
        """What is entered in the form is requested; a limit ends the capture, and tshark with it."""
        name = re.sub(r"[^a-z0-9]", "_", self.interface.lower())
        options = [f"extcap.{name}.{key}:{value}" for key, value in (("packets", "7"), ("filter", "udp"))]
        words = [word for option in options for word in ("-o", option)]
        done = self.run_tshark("-i", self.interface, *words, "-T", "fields", "-e", "frame.number")
        self.assertEqual((done.returncode, len(done.stdout.split())), (0, 7), done.stderr)
        state = self.ended()
        self.assertEqual((state["reason"], state["limits"]["packets"], state["bpf"]), ("packets", 7, "udp"))

    def test_protocol(self) -> None:
        """By the protocol's own calls: packets arrive in the FIFO, and SIGTERM ends the capture."""
        fifo = self.directory / "fifo"
        os.mkfifo(fifo)
        words = ("--capture", "--extcap-interface", self.interface, "--fifo", str(fifo), "--filter", "udp")
        running = subprocess.Popen(
            [self.program, *words], env=environment(**self.variables), stderr=subprocess.PIPE
        )
        with fifo.open("rb") as packets:
            self.assertEqual(len(packets.read(24 + 3 * 144)), 24 + 3 * 144)
            running.send_signal(signal.SIGTERM)
            packets.read()
        _, errors = running.communicate(timeout=60)
        self.assertEqual((running.returncode, errors), (0, b""))
        self.assertEqual(self.ended()["reason"], "cancelled")

    def test_filters(self) -> None:
        """A filter is checked by the node: what is wrong with it is printed, and nothing if it is valid."""
        for bpf, expected in (("udp port 9", ""), ("udp and (", "syntax error")):
            words = ("--extcap-interface", self.interface, "--extcap-capture-filter", bpf)
            ended = pcapctl("extcap", *words, **self.variables)
            self.assertEqual((ended.status, bool(ended.lines)), (0, bool(expected)))
            self.assertIn(expected, " ".join(ended.lines))

    def test_refused(self) -> None:
        """If the node refuses, the reason is on standard error, where Wireshark shows it."""
        done = self.run_tshark("-i", f"{self.interface}", "-f", "host example.org", "-c", "1")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("host names are not looked up", done.stderr)
