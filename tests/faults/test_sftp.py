"""SFTP in trouble: what was captured is delivered exactly once, or stays in the spool until it is."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from twisted.internet import reactor, task
from twisted.internet.defer import Deferred

from pcapsvc.core.event import CaptureDelivered
from pcapsvc.destinations.sftp import ssh
from peers.requirement import require, require_root
from peers.ssh import SftpServer
from tests.faults.destination_case import NAME, named
from tests.faults.house import PATIENT_SECONDS, until
from tests.faults.relay import Cut, Relay
from tests.faults.sftp_case import SftpFaultCase

# The destination's own time limits, which some tests shorten.
_PATIENCE = {name: getattr(ssh, name) for name in ("LOGIN_SECONDS", "SILENCE_SECONDS")}


class SftpTests(SftpFaultCase):
    """With a relay before it."""

    async def setUp(self) -> None:  # type: ignore[override]
        await super().setUp()
        self.relay = Relay(self.server.port)
        self.addCleanup(self.relay.stop)
        self.relay.start()
        self.port = self.relay.port

    async def assert_nothing_left(self) -> None:
        self.relay.stop()
        await super().assert_nothing_left()

    async def trouble(
        self, cut: Cut, words: str, *, arrives: bool = False, timeout: float = PATIENT_SECONDS
    ) -> None:
        """Failures until the capture is in the spool, and then none."""
        house = self.house(self.make, timeout_seconds=timeout)
        self.relay.cut = cut
        await self.spooled(house)
        self.assertIn(words, house.problems[0])
        self.assertEqual(NAME in self.files(), arrives)
        await self.patiently(house)
        for name, seconds in _PATIENCE.items():
            self.patch(ssh, name, seconds)
        self.relay.cut = None
        await self.mended(house)

    async def test_refused(self) -> None:
        """No server, until there is one again."""
        self.server.end()
        house = self.house(self.make)
        await self.spooled(house)
        self.server.start()
        await self.mended(house)

    async def test_reset_at_once(self) -> None:
        """A reset before anything was said."""
        await self.trouble(Cut(sent_bytes=0), "the server has closed the connection")

    async def test_reset_during_the_login(self) -> None:
        """A reset while keys are exchanged."""
        await self.trouble(Cut(answered_bytes=1000), "the server has closed the connection")

    async def test_reset_within_the_file(self) -> None:
        """A reset in the middle. What is left of it is removed by the next attempt."""
        await self.trouble(Cut(sent_bytes=200_000), "the server has closed the connection")

    async def test_hangs(self) -> None:
        """Silence, at each stage: the time of the attempt is up."""
        house = self.house(self.make, timeout_seconds=2.0)
        for number, cut in enumerate(
            (
                Cut(answered_bytes=0, silently=True),
                Cut(answered_bytes=1000, silently=True),
                Cut(sent_bytes=200_000, silently=True),
            )
        ):
            self.relay.cut = cut
            await house.deliver(self.data, named(f"node{number}"))
            self.assertIn("timed out after 2 s", house.problems[-1])
            self.assertEqual(house.reported(CaptureDelivered), [])
        await self.patiently(house)
        self.relay.cut = None
        await until(lambda: len(house.reported(CaptureDelivered)) == 3)
        self.assertEqual(house.spool.entries, 0)
        await house.stop()
        self.assertEqual(self.files(), sorted(named(f"node{number}") for number in range(3)))
        await self.assert_nothing_left()

    async def test_reads_slowly(self) -> None:
        """A server, or a network, that is too slow for the capture."""
        await self.trouble(Cut(sent_bytes_per_second=100_000), "timed out after 2 s", timeout=2.0)

    async def test_drips(self) -> None:
        """Answers that never pause for long, and take too long all the same."""
        await self.trouble(Cut(answered_bytes_per_second=200), "timed out after 2 s", timeout=2.0)

    async def test_silence(self) -> None:
        """A server that answers nothing any more is given up before the time of the attempt is up."""
        self.patch(ssh, "SILENCE_SECONDS", 1.0)
        await self.trouble(
            Cut(sent_bytes=200_000, silently=True), "the server has not answered for 1 s", timeout=60.0
        )

    async def test_no_login(self) -> None:
        """So is one that doesn't complete the login."""
        self.patch(ssh, "LOGIN_SECONDS", 1.0)
        await self.trouble(
            Cut(answered_bytes=0, silently=True), "has not completed the login within 1 s", timeout=60.0
        )

    async def test_greetings_without_end(self) -> None:
        """A server that sends whatever it likes, for ever."""
        for greeting in (b"x" * 1000, b"Welcome!\r\n", b"SSH-1.5-old\r\n", b"SSH-2.0-x\r\n" + bytes(5000)):
            house = self.house(self.make)
            self.relay.cut = Cut(greeting=greeting)
            await self.spooled(house)
            self.relay.cut = None
            await self.delivered_in_the_end(house)
            self.assert_there()
            (self.directory / NAME).unlink()
            self.empty_spool()
        await self.assert_nothing_left()

    async def test_answer_lost(self) -> None:
        """A capture that has arrived without an answer is found there, and not written again."""
        self.directory.mkdir()
        self.directory.chmod(0o777)
        (self.directory / NAME).write_bytes(self.data)
        before = (self.directory / NAME).stat()
        house = self.house(self.make)
        await house.deliver(self.data)
        self.assertEqual(len(house.reported(CaptureDelivered)), 1)
        after = (self.directory / NAME).stat()
        self.assertEqual((before.st_ino, before.st_mtime_ns), (after.st_ino, after.st_mtime_ns))
        self.assert_there()
        await house.stop()
        await self.assert_nothing_left()

    async def test_killed(self) -> None:
        """The server is killed in the middle; the daemon is restarted, and delivers from the spool."""
        self.data = os.urandom(3_000_000)
        self.relay.cut = Cut(sent_bytes=1_000_000, silently=True)
        house = self.house(self.make, attempts=1)
        delivering = Deferred.fromCoroutine(house.deliver(self.data))
        await until(lambda: self.files() == [f".{NAME}.part"])
        self.server.end()
        await delivering
        self.assertEqual(house.spool.entries, 1)
        self.assertNotIn(NAME, self.files())
        await house.stop()
        self.relay.cut = None
        self.server.start()
        house.start()
        await self.mended(house)

    async def test_frozen(self) -> None:
        """A server that is stopped for a while, and goes on."""
        self.data = os.urandom(3_000_000)
        self.relay.cut = Cut(sent_bytes=10**9)
        house = self.house(self.make, timeout_seconds=60)
        delivering = Deferred.fromCoroutine(house.deliver(self.data))
        await until(lambda: bool(self.server.sessions()))
        self.server.signal_sessions(signal.SIGSTOP)
        await task.deferLater(reactor, 0.5)
        self.server.signal_sessions(signal.SIGCONT)
        await delivering
        await house.stop()
        self.assert_there()
        await self.assert_nothing_left()

    async def test_full_disk(self) -> None:
        """A disk that is full, until there is room."""
        require_root("to mount a small file system")
        self.directory.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=300k,mode=777", "tmpfs", str(self.directory)]
        require(subprocess.run(mount, check=False).returncode == 0, "a tmpfs can't be mounted")
        self.addCleanup(subprocess.run, ["umount", str(self.directory)], check=True)
        house = self.house(self.make)
        await self.spooled(house)
        self.assertIn("failure (a full disk, a quota, or another error there)", house.problems[0])
        self.assertEqual(self.files(), [])
        subprocess.run(["mount", "-o", "remount,size=4m", str(self.directory)], check=True)
        await self.mended(house)

    async def test_no_permission(self) -> None:
        """A directory that the user may not write to, until an operator lets it."""
        require_root("to have the server log in somebody else")
        self.directory.mkdir(mode=0o755)
        house = self.house(self.make)
        await self.spooled(house)
        self.assertIn("can't create", house.problems[0])
        self.assertIn("permission denied", house.problems[0])
        self.assertEqual(len(house.problems), 1)
        self.directory.chmod(0o777)
        await self.mended(house, restart=True)

    async def test_file_in_place_of_the_directory(self) -> None:
        """Something else in place of the directory, or of the file."""
        self.directory.write_text("x")
        house = self.house(self.make)
        await self.spooled(house)
        self.directory.unlink()
        self.directory.mkdir(mode=0o777)
        self.directory.chmod(0o777)
        target = self.directory / NAME
        target.write_text("something else")
        await house.stop()
        house.start()
        await until(lambda: bool(house.problems))
        self.assertIn("exists, and is something else", house.problems[0])
        self.assertEqual(target.read_text(), "something else")
        target.unlink()
        await self.mended(house, restart=True)

    async def test_another_host_key(self) -> None:
        """A server with another key gets nothing; both keys are shown."""
        other = SftpServer()
        self.addCleanup(other.stop)
        right, self.host_key = self.host_key, other.host_keys["ed25519"]
        house = self.house(self.make)
        await self.spooled(house)
        for line in (right, self.host_key):
            self.assertIn(_fingerprint(line, self.path), house.problems[0])
        self.assertIn("has another host key than is configured", house.problems[0])
        self.assertEqual(len(house.problems), 1)
        self.assertNotIn("Accepted", self.server.log)
        self.host_key = right
        await self.mended(house, restart=True)

    async def test_no_such_host_key(self) -> None:
        """A server without a key of the kind that is configured."""
        self.server.end()
        self.server.configure(host_keys=("rsa",))
        self.server.start()
        house = self.house(self.make)
        await self.spooled(house)
        self.assertIn("has no host key of a kind that is configured (ssh-ed25519)", house.problems[0])
        self.host_key = self.server.host_keys["rsa"]
        await self.mended(house, restart=True)

    async def test_login_refused(self) -> None:
        """A key that isn't accepted, until it is."""
        self.server.authorize("")
        house = self.house(self.make)
        await self.spooled(house)
        self.assertIn(f"refused the login of {self.server.user} with the key SHA256:", house.problems[0])
        self.assertEqual(len(house.problems), 1)
        self.server.authorize(self.key_file.with_suffix(".pub").read_text())
        await self.mended(house, restart=True)

    async def test_key_file(self) -> None:
        """A key file that is missing, that others may read, or that is broken."""
        right = self.key_file
        self.key_file = self.path / "key"
        house = self.house(self.make)
        await self.spooled(house)
        self.assertIn("must be a file that can be read (No such file or directory)", house.problems[0])
        content = right.read_text().splitlines()
        for text, mode, words in (
            ("\n".join(content), 0o644, "must be accessible by its owner only"),
            ("\n".join([*content[:2], *content[3:]]), 0o600, "must be a private key that can be read"),
            (right.with_suffix(".pub").read_text(), 0o600, "must be a file with a private key"),
        ):
            await house.stop()
            self.key_file.write_text(text)
            self.key_file.chmod(mode)
            house.start()
            await until(lambda: bool(house.problems))
            self.assertIn(words, house.problems[0])
            self.assertNotIn(content[2], house.problems[0])
        self.key_file = right
        await self.mended(house, restart=True)

    async def test_no_files(self) -> None:
        """A server that offers no SFTP."""
        self.server.end()
        self.server.configure("ForceCommand /bin/true", "Subsystem other /bin/true")
        self.server.start()
        house = self.house(self.make)
        await self.spooled(house)
        self.server.end()
        self.server.configure()
        self.server.start()
        await self.mended(house, restart=True)

    async def test_memory(self) -> None:
        """Attempts that hang, or are reset, keep nothing of captures in memory."""
        for cut, words in (
            (Cut(answered_bytes=0, silently=True), "timed out after 0.3 s"),
            (Cut(sent_bytes=200_000), "the server has closed the connection"),
        ):
            self.relay.cut = cut
            await self.costs_no_memory(words)
            self.empty_spool()
        await self.assert_nothing_left()


def _fingerprint(line: str, directory: Path) -> str:
    """The fingerprint of a key, as ssh-keygen has it."""
    path = directory / "one.pub"
    path.write_text(f"{line}\n")
    run = subprocess.run(
        ["ssh-keygen", "-l", "-f", str(path)], check=True, capture_output=True, text=True, timeout=60
    )
    return run.stdout.split()[1]
