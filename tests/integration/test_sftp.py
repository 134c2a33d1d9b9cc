"""SFTP, with OpenSSH's sshd."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

from twisted.internet import defer, reactor, task
from twisted.trial.unittest import TestCase

from pcapsvc.core.errors import DestinationError
from pcapsvc.destinations.sftp.destination import SFTP
from pcapsvc.destinations.sftp.hostkey import parse_host_key
from pcapsvc.threads import Threads
from peers.ssh import SftpServer
from tests.unit.contents import MemfdContent, PeakMemory, make_artifact
from tests.unit.test_sftp import make_key

_NAME = "web1-eth0-1700000000-abc.pcap"


class SftpTests(TestCase):
    """Captures, and what the server has of them."""

    timeout = 300

    def setUp(self) -> None:
        self.server = SftpServer()
        self.addCleanup(self.server.stop)
        self.threads = Threads(reactor)
        self.threads.startService()
        self.addCleanup(self.threads.stopService)
        self.data = os.urandom(500_000)
        self.content = MemfdContent(self.data)
        self.addCleanup(self.content.close)
        self.directory = self.server.directory

    def make(self, **changes: Any) -> SFTP:
        values: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": self.server.port,
            "user": self.server.user,
            "key_file": str(self.server.key_file),
            "host_keys": (parse_host_key(self.server.host_keys["ed25519"]),),
            "directory": str(self.directory),
        }
        return SFTP(reactor, run_in_thread=self.threads.run, **{**values, **changes})

    async def settled(self, content: MemfdContent | None = None) -> None:
        """Wait until all readers and all connections are closed."""
        while not (content or self.content).all_closed or self.server.sessions():
            await task.deferLater(reactor, 0.01)

    def there(self) -> list[str]:
        """All files, by their paths in the directory."""
        return sorted(
            str(path.relative_to(self.directory)) for path in self.directory.rglob("*") if path.is_file()
        )

    async def test_store(self) -> None:
        """A capture arrives byte for byte, in directories that are made, with its mode, and nothing else."""
        self.server.start()
        destination = self.make(directory=f"{self.directory}/{{node}}/{{date}}")
        receipt = await destination.store(make_artifact(self.content))
        path = self.directory / "web1" / "2023-11-14" / _NAME
        self.assertEqual(receipt.location, f"sftp://127.0.0.1:{self.server.port}{path}")
        self.assertEqual(path.read_bytes(), self.data)
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o640)
        self.assertEqual(self.there(), [f"web1/2023-11-14/{_NAME}"])
        self.assertEqual(path.stat().st_nlink, 1)
        await self.settled()

    async def test_relative(self) -> None:
        """A relative directory, or none, begins where the login leads to."""
        self.server.configure(
            "Subsystem sftp internal-sftp", f"ForceCommand internal-sftp -d {self.directory}"
        )
        self.server.start()
        base = f"sftp://127.0.0.1:{self.server.port}/~"
        for directory, where in (("", ""), ("a/b/", "a/b/")):
            receipt = await self.make(directory=directory).store(make_artifact(self.content))
            self.assertEqual(receipt.location, f"{base}/{where}{_NAME}")
        self.assertEqual(self.there(), [f"a/b/{_NAME}", _NAME])
        await self.settled()

    async def test_keys(self) -> None:
        """Each kind of key can log in, with a passphrase or without. Each kind of host key is verified."""
        self.server.start()
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        for number, (kind, passphrase) in enumerate(
            (("rsa", None), ("ecdsa", None), ("ed25519", "open sesame"), ("rsa", "open sesame"))
        ):
            path = make_key(directory, f"id{number}", kind=kind, passphrase=passphrase or "")
            self.server.authorize(path.with_suffix(".pub").read_text())
            host_key = parse_host_key(self.server.host_keys[("rsa", "ed25519")[number % 2]])
            destination = self.make(key_file=str(path), passphrase=passphrase, host_keys=(host_key,))
            await destination.store(make_artifact(self.content, name=f"web1-eth0-{number}-abc.pcap"))
        self.assertEqual(len(self.there()), 4)
        await self.settled()

    async def test_several_host_keys(self) -> None:
        """One of several is enough."""
        other = SftpServer()
        self.addCleanup(other.stop)
        self.server.start()
        keys = (other.host_keys["ed25519"], *self.server.host_keys.values())
        await self.make(host_keys=tuple(map(parse_host_key, keys))).store(make_artifact(self.content))
        self.assertEqual(self.there(), [_NAME])
        await self.settled()

    async def test_keys_exchanged_again(self) -> None:
        """The server may exchange keys again while a capture is being written."""
        self.server.configure(
            "RekeyLimit 1M", "Subsystem sftp internal-sftp", "ForceCommand internal-sftp", "LogLevel DEBUG"
        )
        self.server.start()
        data = os.urandom(6_000_000)
        large = MemfdContent(data)
        self.addCleanup(large.close)
        await self.make().store(make_artifact(large))
        self.assertEqual((self.directory / _NAME).read_bytes(), data)
        self.assertGreater(self.server.log.count("SSH2_MSG_KEXINIT received"), 2)
        await self.settled(large)

    async def test_side_by_side(self) -> None:
        """Many at once each arrive whole."""
        self.server.start()
        destination = self.make(directory=f"{self.directory}/new/{{hour}}")
        names = [f"web1-eth0-{number}-abc.pcap" for number in range(8)]
        await defer.gatherResults(
            [destination.store(make_artifact(self.content, name=name)) for name in names]
        )
        self.assertEqual(self.there(), [f"new/00/{name}" for name in names])
        for path in self.directory.rglob("*.pcap"):
            self.assertEqual(path.read_bytes(), self.data)
        await self.settled()

    async def test_memory(self) -> None:
        """60 MB are written without holding them."""
        self.server.start()
        destination = self.make()
        await destination.store(make_artifact(self.content))
        large = MemfdContent(zeros=60_000_000)
        self.addCleanup(large.close)
        with PeakMemory() as memory:
            await destination.store(make_artifact(large, name="web1-eth0-2-abc.pcap"))
        self.assertLess(memory.grown_bytes, 8_000_000)
        self.assertEqual((self.directory / "web1-eth0-2-abc.pcap").stat().st_size, 60_000_000)
        await self.settled(large)

    async def test_cancel(self) -> None:
        """On cancel the connection is closed at once; what is left is removed by the next attempt."""
        self.server.start()
        large = MemfdContent(zeros=60_000_000)
        self.addCleanup(large.close)
        part = self.directory / f".{_NAME}.part"
        stored = self.make().store(make_artifact(large))
        while not part.exists():
            await task.deferLater(reactor, 0.005)
        stored.cancel()
        await self.assertFailure(stored, defer.CancelledError)
        await self.settled(large)
        self.assertFalse((self.directory / _NAME).exists())
        await self.make().store(make_artifact(self.content))
        self.assertEqual(self.there(), [_NAME])
        await self.settled()

    async def test_nothing_is_followed(self) -> None:
        """A link in place of the temporary file, or of the capture, leads nowhere."""
        self.server.start()
        victim = self.directory / "victim"
        victim.write_text("precious")
        victim.chmod(0o666)
        (self.directory / f".{_NAME}.part").symlink_to(victim)
        await self.make().store(make_artifact(self.content))
        self.assertEqual(victim.read_text(), "precious")
        self.assertFalse((self.directory / _NAME).is_symlink())
        (self.directory / _NAME).unlink()
        (self.directory / _NAME).symlink_to(victim)
        stored = self.make().store(make_artifact(self.content))
        error = await self.assertFailure(stored, DestinationError)
        self.assertIn("exists, and is something else", str(error))
        self.assertEqual(victim.read_text(), "precious")
        self.assertEqual(self.there(), ["victim", _NAME])
        await self.settled()

    async def test_words_that_are_not_ascii(self) -> None:
        """A path that can't be used is an error, in whatever language."""
        self.server.start()
        error = await self.assertFailure(
            self.make(directory=f"{self.directory}/{'ü' * 300}").store(make_artifact(self.content)),
            DestinationError,
        )
        self.assertIn("invalid argument, such as a name that is too long", str(error))
        await self.settled()

    async def test_light(self) -> None:
        """Without this destination, nothing of Conch is loaded; its settings don't need it either."""
        code = (
            "import sys; from pcapsvc.components import COMPONENTS;"
            "assert not [name for name in sys.modules if name.startswith('twisted.conch')]"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
