"""The manhole of the daemon, while it captures, and when it stops."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
import time
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from peers.daemon import Daemon
from peers.frames import number_of, udp_frame
from peers.process import free_port
from peers.redis import RedisServer
from peers.ssh import SshClient
from peers.tcpdump import read_packets
from peers.wire import Wire

PASSWORD = "hush-hush 'n' quiet"

_TRIES = 20


class ManholeDaemonTests(SynchronousTestCase):
    """A daemon with a manhole, and OpenSSH's client."""

    def setUp(self) -> None:
        """A client whose key may log in."""
        self.ssh = SshClient()
        self.addCleanup(self.ssh.stop)
        self.authorized_keys = self.ssh.directory / "authorized_keys"
        self.authorized_keys.write_text(self.ssh.make_key())
        self.authorized_keys.chmod(0o600)
        self.port = free_port()

    def daemon(self, configuration: str = "", **options: str) -> Daemon:
        """A daemon that runs until the end of the test."""
        daemon = Daemon(
            f'{configuration}\n[manhole]\nlisten = "tcp:{self.port}:interface=127.0.0.1"\n'
            f'authorizedkeys = "{self.authorized_keys}"\nhostkey = "{self.ssh.directory / "host_key"}"\n',
            **options,
        )
        self.addCleanup(daemon.stop)
        daemon.start()
        return daemon

    def run_ssh(self, command: str, **how: Any) -> tuple[int, str]:
        """The exit status and the output of a command."""
        words = self.ssh.arguments(command, port=self.port, **how)
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL
        )
        return done.returncode, done.stdout + done.stderr.replace(self._warning(), "")

    def _warning(self) -> str:
        return f"Warning: Permanently added '[127.0.0.1]:{self.port}' (ED25519) to the list of known hosts.\n"

    def run_console(self, command: str) -> str:
        """The output of a command that succeeds."""
        status, output = self.run_in_time(command)
        self.assertEqual(status, 0, output)
        return output

    def run_in_time(self, command: str) -> tuple[int, str]:
        """As L{run_ssh}, once more if the line was interrupted: on a busy machine any may be."""
        for _ in range(_TRIES):
            status, output = self.run_ssh(command)
            if "TakesTooLong" not in output:
                break
        return status, output

    def session(self, **how: Any) -> subprocess.Popen[bytes]:
        """A session at a terminal, which is ended with the test at the latest."""
        words = self.ssh.arguments(port=self.port, options=("-tt",), **how)
        session = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

        def end() -> None:
            session.kill()
            session.communicate()

        self.addCleanup(end)
        seen = b""
        assert session.stdout is not None
        while b">>> " not in seen:
            part = session.stdout.read1()
            self.assertTrue(part, seen)
            seen += part
        return session

    def test_captures(self) -> None:
        """Captures are started, listed and ended, and delivered as every other."""
        wire = Wire()
        self.addCleanup(wire.stop)
        wire.start()
        daemon = self.daemon()
        output = self.run_console(
            f"captures.start({{'interface': ['{wire.interface}'], 'packets': 100, 'bpf': 'udp port 9'}})"
        )
        found = re.search(r"Deferred #0: Accepted\(captures=\(StartedCapture\(capture_id='([^']+)'", output)
        assert found is not None, output
        capture = found[1]
        self.assertRegex(
            self.run_console("captures"), rf"(?m)^{capture} +capturing +manhole +{wire.interface}"
        )
        wire.send([udp_frame(number) for number in range(3)])
        daemon.until(lambda: "packets" in self.run_console(f"captures.get('{capture}')") or None, "packets")
        self.assertIn("ENDED", self.run_console(f"captures.end('{capture}')"))
        self.assertEqual(daemon.done(capture)["packets"], 3)
        self.assertRegex(self.run_console("captures.list('done')"), rf"(?m)^{capture} +done +manhole")
        self.assertIn("Rejected", self.run_console("captures.start(packets='many')"))

    def test_looking_around(self) -> None:
        """Whatever the daemon has is shown: its parts, what waits, and what the reactor does."""
        self.daemon()
        self.assertRegex(self.run_console("sources"), r"(?m)^http +HTTPSource$")
        self.assertRegex(self.run_console("destinations"), r"(?m)^local +LocalDirectory$")
        self.assertIn("node_name = 'node-1'", self.run_console("settings"))
        self.assertRegex(self.run_console("readers()"), r"(?m)^\d+ +read +\S")
        self.assertRegex(self.run_console("delayed_calls()"), r"^in +calls|^\(none\)")
        self.assertRegex(self.run_console("objects()"), r"(?m)^builtins\.dict +\d+$")
        self.run_console("spool, outboxes, node, help(), help(node.pipeline)")

    def test_waiting(self) -> None:
        """What waits for a destination that is down is shown, and why."""
        wire = Wire()
        self.addCleanup(wire.stop)
        wire.start()
        spool = self.ssh.directory / "spool"
        spool.mkdir(0o700)
        daemon = self.daemon(
            f'[delivery]\nspooldir = "{spool}"\nattempts = 1\n[cloudshark]\nupload = true\n'
            f'host = "127.0.0.1"\nscheme = "http"\nport = {free_port()}\ntoken = "0123456789"\n'
        )
        capture = daemon.capture(interface=[wire.interface], packets=3, bpf="udp port 9")
        wire.send([udp_frame(number) for number in range(3)])
        daemon.done(capture)
        self.assertRegex(self.run_console("spool"), rf"(?m)^{capture} +cloudshark +spooled +\d+ .*refused")
        self.assertRegex(self.run_console("outboxes"), r"(?m)^cloudshark +0$")

    def test_secrets(self) -> None:
        """No expression that begins with the settings or the node prints a secret."""
        redis = RedisServer(password=PASSWORD)
        self.addCleanup(redis.stop)
        redis.start()
        daemon = self.daemon(
            f'[redis]\nlisten = true\nhost = "127.0.0.1"\nport = {redis.port}\nauth = "{PASSWORD}"\n'
        )
        daemon.logged("subscribed")
        # What the daemon's own client holds: it is masked on its way out.
        source = "import gc; [o for o in gc.get_objects() if type(o) is dict and '_password' in o]"
        expressions = [
            "settings",
            "repr(settings)",
            "str(settings.redis)",
            "settings.redis.auth",
            "settings.redis.auth.reveal()",
            "vars(settings.redis)",
            "settings.redis.__dict__",
            "'{0.redis.auth!r} {0.redis}'.format(settings)",
            "f'{settings.redis.auth}' + '%s' % (settings.redis,)",
            "node",
            "node.settings",
            "vars(node)",
            "node.settings.named('redis').auth",
            "node.settings.named('redis').auth.reveal()",
            "import msgspec; msgspec.structs.asdict(node.settings.named('redis'))",
            "[getattr(settings.redis, name) for name in dir(settings.redis)]",
            "sources['redis'].__dict__",
            "raise ValueError(settings)",
            source,
        ]
        for expression in expressions:
            status, output = self.run_in_time(expression)
            self.assertNotIn("hush-hush", output, expression)
            self.assertNotEqual(status, 255, output)
        self.assertIn("<secret>", self.run_in_time(source)[1])
        self.assertNotIn("hush-hush", daemon.log)

    def test_hangs_and_floods(self) -> None:
        """Sessions whose lines hang, flood, or are never read cost a capture that runs no packet."""
        wire = Wire()
        self.addCleanup(wire.stop)
        wire.start()
        daemon = self.daemon()
        capture = daemon.capture(interface=[wire.interface], packets=30_000, snap=128, bpf="udp port 9")
        frames = [udp_frame(number) for number in range(30_000)]
        session = self.session()
        assert session.stdin is not None
        # It reads nothing of what follows.
        session.stdin.write(b"print('x' * 60_000)\r" * 1000)
        session.stdin.flush()
        sender = threading.Thread(target=wire.send, args=(frames, 10_000))
        sender.start()
        while sender.is_alive():
            for line in ("while True: pass", "while True: print('flood')", "import time; time.sleep(60)"):
                self.assertIn("TakesTooLong", self.run_ssh(line)[1])
        state = daemon.done(capture)
        self.assertEqual((state["reason"], state["packets"], state["dropped"]), ("packets", 30_000, 0))
        found = [number_of(packet.data) for packet in read_packets(daemon.file_of(capture))]
        self.assertEqual(found, list(range(30_000)))
        daemon.logged("does not read; disconnected")

    # It measures lost packets.
    test_hangs_and_floods.needs_machine_alone = True  # type: ignore[attr-defined]

    def test_stop(self) -> None:
        """A stop doesn't wait for sessions: neither for one that is idle, nor for one whose client hangs."""
        daemon = self.daemon()
        self.session()
        hanging = self.session()
        hanging.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        daemon.signal(signal.SIGTERM)
        self.assertEqual(daemon.wait(), 0)
        self.assertLess(time.monotonic() - began, 8.0)
        hanging.send_signal(signal.SIGCONT)

    def test_stop_with_a_thread(self) -> None:
        """Nor does it wait for a thread that somebody has started there."""
        daemon = self.daemon()
        line = "import threading, time; threading.Thread(target=time.sleep, args=(600,)).start()"
        self.assertEqual(self.run_in_time(line)[0], 0)
        daemon.signal(signal.SIGTERM)
        self.assertEqual(daemon.wait(), 0)

    def test_restart(self) -> None:
        """After a restart the daemon has the same host key, so that clients still know it."""
        daemon = self.daemon()
        self.assertEqual(self.run_console("1"), "1\n")
        daemon.signal(signal.SIGTERM)
        daemon.wait()
        remembered = self.ssh.known_hosts.read_text()
        daemon = self.daemon()
        self.assertEqual(self.run_console("1"), "1\n")
        self.assertEqual(self.ssh.known_hosts.read_text(), remembered)
        self.assertEqual((self.ssh.directory / "host_key").stat().st_mode & 0o777, 0o600)
