"""The daemon as an ordinary user, with the capabilities that the systemd unit leaves it, and without any."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from ctypes.util import find_library
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from peers.cloudshark import CloudSharkServer
from peers.daemon import Daemon
from peers.frames import number_of, udp_frame
from peers.requirement import require, require_command
from peers.s3 import S3Server
from peers.tcpdump import read_packets
from peers.wire import Wire
from tests.integration.test_slow_filters import Asker, children, require_endless

_PACKAGING = Path(__file__).parents[2] / "packaging"
# The user nobody on every distribution.
_USER = 65534


class LeastPrivilegeTests(SynchronousTestCase):
    """An ordinary user captures real packets."""

    def setUp(self) -> None:
        """A wire."""
        self.wire = Wire()
        self.addCleanup(self.wire.stop)
        self.wire.start()

    def daemon(self, *capabilities: str, configuration: str = "", within: tuple[str, ...] = ()) -> Daemon:
        """
        A daemon that runs as an ordinary user with these capabilities, as the unit starts it.

        @param within: a further prefix of its command.
        """
        setpriv = require_command("setpriv", "util-linux")
        daemon = Daemon(configuration)
        self.addCleanup(daemon.stop)
        folder = daemon.captures.parent
        for path in (folder, *folder.iterdir()):
            os.chown(path, _USER, _USER)
        wanted = ",".join(["-all", *(f"+{name}" for name in capabilities)])
        daemon.start(
            *(setpriv, f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups", "--no-new-privs"),
            *(f"--inh-caps={wanted}", f"--ambient-caps={wanted}", f"--bounding-set={wanted}"),
            *within,
        )
        return daemon

    def readable(self, path: Path) -> Path:
        """A copy of a file that any user can read."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        os.chmod(folder.name, 0o755)
        copied = Path(folder.name, path.name)
        copied.touch()
        copied.chmod(0o644)
        copied.write_bytes(path.read_bytes())
        return copied

    def capabilities(self, daemon: Daemon) -> set[str]:
        """The capability sets of all threads of a daemon."""
        found = set()
        for status in Path(f"/proc/{daemon.pid}/task").glob("*/status"):
            with contextlib.suppress(OSError):  # the thread has ended
                lines = status.read_text().splitlines()
                found |= {
                    line.split()[1] for line in lines if line.startswith(("CapPrm", "CapEff", "CapBnd"))
                }
        return found

    def test_with_cap_net_raw_alone(self) -> None:
        """It captures, and delivers to a directory, to CloudShark over verified TLS, and to S3."""
        cloudshark, s3 = CloudSharkServer(), S3Server()
        for peer in (cloudshark, s3):
            self.addCleanup(peer.stop)
            peer.start()
        # The server's directory is accessible to its owner only.
        authority = self.readable(cloudshark.ca_file)
        daemon = self.daemon(
            "net_raw",
            configuration=f'[cloudshark]\nupload = true\nhost = "localhost"\nport = {cloudshark.port}\n'
            f'token = "{cloudshark.token}"\nverify = "{authority}"\n'
            f'[s3]\nupload = true\naccessid = "{s3.access_key}"\naccesskey = "{s3.secret_key}"\n'
            f'endpoint = "{s3.endpoint}"\nbucket = "{s3.bucket}"\nregion = "us-east-1"\n',
        )
        # CAP_NET_RAW is 13 (capability.h).
        self.assertEqual({int(mask, 16) for mask in self.capabilities(daemon)}, {1 << 13})
        captures = [
            daemon.capture(interface=[interface], packets=20, bpf="udp port 9 and host 192.0.2.1")
            for interface in (self.wire.interface, "any")
        ]
        self.wire.send([udp_frame(number) for number in range(20)])
        for capture in captures:
            state = daemon.done(capture)
            self.assertEqual({one["state"] for one in state["deliveries"]}, {"delivered"}, state)
        found = read_packets(daemon.file_of(captures[0]))
        self.assertEqual([number_of(packet.data) for packet in found], list(range(20)))
        self.assertEqual(len(cloudshark.uploads()), 2)
        self.assertNotIn("no permission", daemon.log)

    def test_within_the_system_call_filter(self) -> None:
        """The unit's filter of system calls permits everything: to capture, to give way, and to stop."""
        require_command("systemd-analyze", "systemd")
        require(find_library("seccomp"), "libseccomp is not installed (package libseccomp2)")
        # The project may be where only its owner can read.
        program = self.readable(Path(__file__).with_name("seccomp_process.py"))
        unit = self.readable(_PACKAGING / "pcapsvc.service")
        daemon = self.daemon("net_raw", within=(sys.executable, str(program), str(unit)))
        # proc(5): 2 is a filter.
        self.assertIn("Seccomp:\t2\n", Path(f"/proc/{daemon.pid}/status").read_text())
        capture = daemon.capture(
            interface=[self.wire.interface], packets=20, bpf="udp port 9", compress="zstd"
        )
        self.wire.send([udp_frame(number) for number in range(20)])
        [delivery] = daemon.done(capture)["deliveries"]
        self.assertEqual(delivery["state"], "delivered")
        require_endless()
        asker = Asker(daemon)
        self.addCleanup(asker.stop)
        daemon.until(
            lambda: self.is_nice(children(daemon.pid)) or None, "a process that compiles, and is nice"
        )
        asker.stop()
        daemon.signal(signal.SIGTERM)
        self.assertEqual(daemon.wait(), 0)
        self.assertNotIn("not permitted", daemon.log)

    @staticmethod
    def is_nice(processes: list[int]) -> bool:
        """Whether any of these processes gives way."""
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                if os.getpriority(os.PRIO_PROCESS, pid) >= 10:
                    return True
        return False

    def test_without(self) -> None:
        """It logs that once at the start, explains it in each answer, and everything else works."""
        daemon = self.daemon(configuration=f'[capture]\nstandby = ["{self.wire.interface}"]\n')
        daemon.logged("no permission to capture: the daemon needs CAP_NET_RAW; until it is started with it")
        before = daemon.descriptors()
        body = json.dumps({"node": "any", "interface": [self.wire.interface, "lo"], "packets": 1}).encode()
        for _ in range(5):
            status, answer = daemon.request("POST", "/captures", body)
            self.assertEqual(status, 400)
            self.assertEqual(
                [problem["rule"] for problem in answer["problems"]],
                ["no permission to capture: the daemon needs CAP_NET_RAW"],
            )
        status, answer = daemon.request("POST", "/captures", b'{"node": "any", "interface": ["nosuch0"]}')
        self.assertEqual((status, answer["problems"][0]["rule"]), (400, "no such interface"))
        self.assertEqual(daemon.log.count("until it is started with it"), 1)
        self.assertNotIn("Traceback", daemon.log)
        deadline = time.monotonic() + 60
        while (left := daemon.descriptors() - before) and time.monotonic() < deadline:
            time.sleep(0.02)  # until it has noticed that the last connection is closed
        self.assertEqual(left, set())


class NotifyTests(SynchronousTestCase):
    """Notifications to the service manager."""

    def test_ready_then_stopping(self) -> None:
        """The daemon reports that it is ready once it answers, and that it is stopping when it is stopped."""
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/notify"
            manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self.addCleanup(manager.close)
            manager.settimeout(60)
            manager.bind(path)
            daemon = Daemon(general="stoptimeout = 60")
            self.addCleanup(daemon.stop)
            daemon.start("env", f"NOTIFY_SOCKET={path}")
            self.assertEqual(manager.recv(100), b"READY=1")
            self.assertEqual(daemon.request("GET", "/captures/none")[0], 404)
            daemon.signal(15)
            self.assertEqual(manager.recv(100), b"STOPPING=1\nEXTEND_TIMEOUT_USEC=65000000")
            self.assertEqual(daemon.wait(), 0)


class UnitTests(SynchronousTestCase):
    """The unit for systemd."""

    def unit(self) -> Path:
        """The unit, with the path of an existing program."""
        require(_PACKAGING.is_dir(), "packaging/ is not next to tests/")
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        text = (_PACKAGING / "pcapsvc.service").read_text()
        unit = Path(folder.name, "pcapsvc.service")
        unit.write_text(
            text.replace("/opt/pcapsvc/bin/twistd", str(Path(sys.executable).with_name("twistd")))
        )
        self.assertNotEqual(unit.read_text(), text)
        return unit

    def analyze(self, *words: str) -> str:
        """The output of C{systemd-analyze}."""
        program = require_command("systemd-analyze", "systemd")
        done = subprocess.run([program, *words], capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout + done.stderr

    def test_verify(self) -> None:
        """systemd finds nothing wrong with the unit."""
        self.assertEqual(self.analyze("verify", "--man=no", str(self.unit())).strip(), "")

    def test_security(self) -> None:
        """The unit's exposure has not grown: it is what a capture and its delivery need."""
        unit = str(self.unit())
        # The threshold is ten times the exposure that `security` shows.
        self.analyze("security", "--offline=true", "--threshold=18", unit)
