"""SFTP: keys, and settings."""

from __future__ import annotations

import os
import struct
import subprocess
from base64 import b64encode
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from twisted.conch.ssh.common import NS
from twisted.conch.ssh.filetransfer import (
    FX_OK,
    FXF_WRITE,
    FXP_ATTRS,
    FXP_HANDLE,
    FXP_STATUS,
    FXP_VERSION,
)
from twisted.conch.ssh.transport import MSG_EXT_INFO
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from pcapsvc.core.errors import DestinationError
from pcapsvc.destinations.sftp.destination import SFTP
from pcapsvc.destinations.sftp.hostkey import HostKey, fingerprint, parse_host_key
from pcapsvc.destinations.sftp.keyfile import UnusableKey, is_encrypted, read_key_file
from pcapsvc.destinations.sftp.settings import SftpSettings
from pcapsvc.destinations.sftp.ssh import Client, Login, Session, load_key
from pcapsvc.interfaces.delivery import IDestination
from pcapsvc.testing import run_now
from peers.requirement import require_command
from tests.chance import chance
from tests.cost import takes_less
from tests.unit.contents import MemfdContent, make_artifact
from tests.unit.settings_case import SettingsTestCase

_ED25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF9h6rLqZE7x7Rk2bU2mvA0kE2Q3lVQJc7pT0s1yHkQe"


def make_key(
    directory: Path, name: str, *, kind: str = "ed25519", passphrase: str = "", more: str = ""
) -> Path:
    """A new key in a file."""
    path = directory / name
    words = ["-q", "-t", kind, "-N", passphrase, "-C", "a comment", "-f", str(path), *more.split()]
    subprocess.run(
        [require_command("ssh-keygen", "openssh-client"), *words],
        check=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    return path


@cache
def _keys() -> tuple[bytes, bytes]:
    """A private key as it is, and with a passphrase, which takes a while to encrypt."""
    with TemporaryDirectory(prefix="pcapsvc-keys-") as directory:
        usual = make_key(Path(directory), "usual")
        encrypted = make_key(Path(directory), "encrypted", passphrase="open sesame")
        return usual.read_bytes(), encrypted.read_bytes()


class HostKeyTests(SynchronousTestCase):
    """The public keys of servers."""

    def test_forms(self) -> None:
        """A key is found in what ssh-keyscan prints, in a public key file, and by itself."""
        expected = parse_host_key(_ED25519)
        self.assertEqual(expected.kind, "ssh-ed25519")
        for line in (f"{_ED25519} root@host", f"files.example.org {_ED25519}", f"|1|aa=|bb= {_ED25519} x y"):
            self.assertEqual(parse_host_key(line), expected)
        self.assertRegex(str(expected), r"\Assh-ed25519 SHA256:[A-Za-z0-9+/]{43}\Z")

    def test_like_openssh(self) -> None:
        """Each kind of key is understood, and its fingerprint is that of ssh-keygen."""
        directory = Path(self.mktemp())
        directory.mkdir()
        for kind, more in (("ed25519", ""), ("rsa", "-b 2048"), ("ecdsa", "-b 256"), ("ecdsa", "-b 521")):
            path = make_key(directory, f"{kind}{more[-3:]}", kind=kind, more=more).with_suffix(".pub")
            run = subprocess.run(
                ["ssh-keygen", "-l", "-f", str(path)], check=True, capture_output=True, text=True, timeout=60
            )
            self.assertEqual(fingerprint(parse_host_key(path.read_text()).blob), run.stdout.split()[1])

    def test_wrong(self) -> None:
        """Anything else is a problem, in clear words."""
        kind, key = _ED25519.split()
        for line, words in (
            ("", "must be a public key of the server"),
            ("SHA256:abc", "must be a public key of the server"),
            (kind, "must be a public key of the server"),
            (f"ssh-dss {key}", "must be a public key of the server"),
            (f"{kind} {key[:-4]}!!!!", "has a key that is broken"),
            (f"{kind} {key[:20]}", "has a key that is broken"),
            (f"ssh-rsa {key}", "has a key that is broken, or is not of the type ssh-rsa"),
            (f"{kind} {b64encode(bytes(4)).decode()}", "has a key that is broken"),
        ):
            self.assertIn(words, str(self.assertRaises(ValueError, parse_host_key, line)), line)

    def test_random(self) -> None:
        """Of 100,000 lines, each is a key, or is refused with a rule."""
        random = chance(self.id())
        pieces = [
            *_ED25519.split(),
            "ssh-rsa",
            "AAAA",
            "=",
            " ",
            "\t",
            "\x00",
            "\u2028",
            "é",
            "x" * 50,
            "////",
        ]
        found = 0
        for _ in range(100_000):
            line = "".join(random.choices(pieces, k=random.randrange(6)))
            try:
                key = parse_host_key(line)
            except ValueError:
                continue
            found += 1
            self.assertEqual(key, parse_host_key(_ED25519), line)
        self.assertGreater(found, 10)


class KeyFileTests(SynchronousTestCase):
    """The file with the private key."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()

    def test_modes(self) -> None:
        """Its group may read it, as the daemon may get it that way; nobody else may, nor write to it."""
        path = make_key(self.directory, "id")
        for mode, is_fine in ((0o600, True), (0o400, True), (0o640, True), (0o660, False), (0o604, False)):
            path.chmod(mode)
            if is_fine:
                self.assertIn(b"PRIVATE KEY", read_key_file(str(path)))
            else:
                error = self.assertRaises(UnusableKey, read_key_file, str(path))
                self.assertIn("must be accessible by its owner only", str(error))

    def test_other_files(self) -> None:
        """What isn't a file with a private key is refused, and nothing hangs."""
        fifo, empty = self.directory / "fifo", self.directory / "empty"
        os.mkfifo(fifo)
        empty.touch(0o600)
        for path, words in (
            (str(self.directory), "must be a regular file"),
            (str(fifo), "must be a regular file"),
            (str(empty), "must be a file with a private key"),
            (str(self.directory / "none"), "must be a file that can be read (No such file or directory)"),
            ("a\x00b", "must be a file that can be read"),
            (str(make_key(self.directory, "pkcs8", kind="rsa", more="-m PKCS8")), "PKCS #8; 'ssh-keygen -p"),
            ("/dev/zero", "must be a regular file"),
        ):
            self.assertIn(words, str(self.assertRaises(UnusableKey, read_key_file, path)))

    def test_kinds(self) -> None:
        """Keys of each kind can be used, in both formats, with a passphrase and without."""
        for number, (kind, more) in enumerate(
            (
                ("ed25519", ""),
                ("rsa", "-b 2048"),
                ("ecdsa", "-b 384"),
                ("rsa", "-b 2048 -m PEM"),
                ("ecdsa", "-m PEM"),
            )
        ):
            for passphrase in ("", "open sesame"):
                path = make_key(
                    self.directory, f"id{number}{passphrase[:4]}", kind=kind, more=more, passphrase=passphrase
                )
                content = read_key_file(str(path))
                self.assertEqual(is_encrypted(content), bool(passphrase), (kind, more))
                key = load_key(content, passphrase or None)
                public = parse_host_key(path.with_suffix(".pub").read_text())
                self.assertEqual(key.public().blob(), public.blob)

    def test_refused(self) -> None:
        """A key that can't be used is refused, and nothing of it is shown."""
        encrypted = read_key_file(str(make_key(self.directory, "a", passphrase="open sesame")))
        weak = read_key_file(str(make_key(self.directory, "b", kind="rsa", more="-b 1024")))
        lines = encrypted.decode().splitlines()
        for content, passphrase, words in (
            (encrypted, None, "must be a private key that can be read"),
            (encrypted, "wrong", "must be a private key that can be read with the passphrase of"),
            (weak, None, "must be a stronger key"),
            (encrypted[:200], "open sesame", "must be a private key that can be read"),
            (_ED25519.encode(), None, "must be a private key, and it is a public one"),
        ):
            error = self.assertRaises(ValueError, load_key, content, passphrase)
            self.assertIn(words, str(error))
            self.assertIs(error.__cause__, None)
            for secret in (lines[2], "sesame", "wrong"):
                self.assertNotIn(secret, str(error))

    def test_repr(self) -> None:
        """What has the key doesn't show it."""
        key = load_key(read_key_file(str(make_key(self.directory, "id"))), None)
        login = Login(user="u", key=key, host_keys=(parse_host_key(_ED25519),))
        self.assertEqual(repr(login), "<Login of u>")
        self.assertRegex(login.fingerprint, "SHA256:")


class DestinationTests(SynchronousTestCase):
    """L{SFTP}, without a server."""

    def test_interface(self) -> None:
        """It is a destination, called sftp, without options."""
        destination = SFTP(
            None,
            run_in_thread=run_now,
            host="h",
            port=22,
            user="u",
            key_file="/k",
            host_keys=(HostKey(kind="ssh-ed25519", blob=b""),),
            passphrase="hunter2hunter2",
        )
        self.assertTrue(verifyObject(IDestination, destination))
        self.assertEqual(destination.name, "sftp")
        self.assertEqual([destination.route({"folder": "x"})], list(destination.routes))
        self.assertEqual(
            [str(each) for each in destination.check({"folder": "f"})], ["folder: is not a known key"]
        )
        self.assertNotIn("hunter2", repr(destination))

    def test_read_size(self) -> None:
        """Little of what a server sends is read at once: it may be thousands of packets."""
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        reactor = MemoryReactorClock()
        destination = SFTP(
            reactor,
            run_in_thread=run_now,
            host="192.0.2.1",
            port=22,
            user="u",
            key_file=str(make_key(directory, "id")),
            host_keys=(parse_host_key(_ED25519),),
        )
        content = MemfdContent(b"12")
        self.addCleanup(content.close)
        storing = destination.store(make_artifact(content))
        [(_, _, factory, *_)] = reactor.tcpClients
        transport = StringTransport()
        protocol = factory.buildProtocol(None)
        protocol.makeConnection(transport)
        self.assertLessEqual(transport.bufferSize, 8192)  # type: ignore[attr-defined]
        protocol.connectionLost(Failure(ConnectionDone()))
        self.failureResultOf(storing, DestinationError)


class GreetingTests(SynchronousTestCase):
    """What a server says before its version."""

    def make(self) -> Session:
        """A connection that has just been made."""
        login = Login(user="u", key=None, host_keys=(HostKey(kind="ssh-ed25519", blob=b""),))
        clock = Clock()
        session = Session(clock, login, most_received_bytes=1_000_000)
        session.makeConnection(StringTransport())
        self.addCleanup(session.connectionLost)
        session.opened.addErrback(lambda _: None)
        return session

    def test_lines(self) -> None:
        """Lines before the version are skipped, however they arrive (RFC 4253, section 4.2)."""
        whole = b"Welcome\r\n\n to SSH-2.0\r\nSSH-2.0-x y\r\n"
        for size in (1, 2, 9, 10, len(whole)):
            session = self.make()
            for at in range(0, len(whole), size):
                session.dataReceived(whole[at : at + size])
            self.assertEqual((session.otherVersionString, session.problem), (b"SSH-2.0-x y", None))

    def test_too_long(self) -> None:
        """A line that goes on and on is refused, in place of the version or as the version."""
        for begins in (b"", b"a\n", b"SSH-2.0-"):
            session = self.make()
            for data in (begins, *[b"x" * 1000] * 5):
                self.assertIsNone(session.problem)
                session.dataReceived(data)
            self.assertIn("does not speak the protocol", str(session.problem))

    def test_cost(self) -> None:
        """Many short lines take little time."""

        def read() -> None:
            session = self.make()
            for _ in range(10):
                session.dataReceived(b"\n" * 65536)
            self.assertIsNone(session.problem)

        self.assertTrue(takes_less(0.5, read))


class LongPacketTests(SynchronousTestCase):
    """What takes Conch time that grows with the square of its length."""

    def setUp(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin a session."""
        login = Login(user="u", key=None, host_keys=(HostKey(kind="ssh-ed25519", blob=b""),))
        self.session = Session(Clock(), login, most_received_bytes=2_000_000)
        self.session.makeConnection(StringTransport())
        self.addCleanup(self.session.connectionLost)
        self.session.opened.addErrback(lambda _: None)
        self.session.dataReceived(b"SSH-2.0-x\r\n")

    def test_extensions(self) -> None:
        """A packet with more extensions than fit into one of the usual length is not parsed."""
        count = 60_000
        packet = ssh_packet(MSG_EXT_INFO, struct.pack("!L", count) + bytes(8 * count))

        def receive() -> None:
            self.begin()
            self.session.dataReceived(packet)
            self.assertIn("sends a packet that is too long", str(self.session.problem))

        self.assertTrue(takes_less(0.2, receive))

    def test_usual(self) -> None:
        """One of the usual length is."""
        self.session.dataReceived(
            ssh_packet(MSG_EXT_INFO, struct.pack("!L", 1) + NS(b"x") + NS(b"y" * 30_000))
        )
        self.assertIsNone(self.session.problem)
        self.assertEqual(self.session.peerExtensions, {b"x": b"y" * 30_000})

    def test_version_of_files(self) -> None:
        """The first answer of the program for files has a length, too, however it arrives."""
        answer = struct.pack("!LBL", 5 + 300_000, FXP_VERSION, 3) + bytes(300_000)

        def receive() -> None:
            self.begin()
            client = Client(self.session)
            client.makeConnection(StringTransport())
            for at in range(0, len(answer), 3):
                client.dataReceived(answer[at : at + 3])
                if self.session.problem is not None:
                    break
            self.assertIn("sends an answer that is too long", str(self.session.problem))

        self.assertTrue(takes_less(0.2, receive))

    def test_answers(self) -> None:
        """Answers of the usual length are understood, also if several arrive at once, and in pieces."""
        client = Client(self.session)
        client.makeConnection(StringTransport())
        asked = [client.removeFile(b"x") for _ in range(3)]
        answers = b"".join(
            struct.pack("!LBLL", 9 + 8, FXP_STATUS, number, FX_OK) + NS(b"") * 2 for number in range(3)
        )
        client.dataReceived(answers[:25])
        client.dataReceived(answers[25:])
        for each in asked:
            self.assertIsNone(self.successResultOf(each))

    def test_answers_to_something_else(self) -> None:
        """An answer that doesn't fit its request, or is malformed, ends the connection at once."""
        status = struct.pack("!LL", 0, FX_OK) + NS(b"") * 2
        for ask, kind, answer in (
            ("openFile", FXP_STATUS, status),
            ("getAttrs", FXP_STATUS, status),
            ("getAttrs", FXP_HANDLE, struct.pack("!L", 0) + NS(b"h")),
            ("getAttrs", FXP_ATTRS, struct.pack("!LL", 0, 0xFFFFFFFF)),
            ("removeFile", FXP_ATTRS, struct.pack("!LL", 0, 0)),
            ("removeFile", FXP_STATUS, struct.pack("!LL", 1, FX_OK)),
            ("removeFile", FXP_STATUS, b"\0"),
            ("removeFile", 255, b""),
        ):
            self.setUp()
            client = Client(self.session)
            client.makeConnection(StringTransport())
            more = (FXF_WRITE, {}) if ask == "openFile" else ()
            asked = getattr(client, ask)(b"x", *more)
            client.dataReceived(struct.pack("!LB", 1 + len(answer), kind) + answer)
            self.assertIn("sent a malformed answer", str(self.session.problem), (ask, kind))
            client.connectionLost(Failure(ConnectionDone()))
            self.failureResultOf(asked, ConnectionLost)


def ssh_packet(kind: int, payload: bytes) -> bytes:
    """A packet without encryption (RFC 4253, section 6)."""
    padding = 8 + -(6 + len(payload)) % 8
    return struct.pack("!LBB", 2 + len(payload) + padding, padding, kind) + payload + bytes(padding)


class SftpSettingsTests(SettingsTestCase):
    """C{[sftp]}."""

    def setUp(self) -> None:
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        self.key, self.encrypted = (directory / name for name in ("id", "encrypted"))
        for path, content in zip((self.key, self.encrypted), _keys(), strict=True):
            path.touch(mode=0o600)
            path.write_bytes(content)
        self.text = (
            f'[http]\nlisten = "unix:s:mode=600"\n[sftp]\nupload = true\nhost = "files.example.org"\n'
            f'user = "pcap"\nkeyfile = "{self.key}"\nhostkey = "{_ED25519}"\n'
        )

    def test_least(self) -> None:
        """The server, a login and its key are enough. The key may be one line, or a list."""
        section = self.section(SftpSettings, self.text)
        self.assertEqual((section.port, section.directory, section.key_file), (22, None, str(self.key)))
        self.assertEqual(section.host_keys, (_ED25519,))
        text = self.text.replace(f'"{_ED25519}"', f'["{_ED25519}", "h {_ED25519}"]')
        self.assertEqual(len(self.section(SftpSettings, text).host_keys), 2)

    def test_needed(self) -> None:
        """All that is missing is reported at once."""
        self.assertEqual(
            self.problems('[http]\nlisten = "unix:s:mode=600"\n[sftp]\nupload = true\n'),
            [f"sftp.upload: needs sftp.{key}" for key in ("host", "user", "keyfile", "hostkey")],
        )

    def test_passphrase(self) -> None:
        """A key with a passphrase needs a file with it, which is a secret."""
        text = self.text.replace(str(self.key), str(self.encrypted))
        self.assertEqual(
            self.only_problem(text),
            "sftp.keyfile: has a passphrase, which sftp.passphrasefile must give",
        )
        passphrase = self.file("open sesame\n")
        settings = self.load(f'{text}passphrasefile = "{passphrase}"\n')
        self.assertNotIn("sesame", repr(settings))

    def test_wrong(self) -> None:
        """Each value has its rule."""
        self.key.chmod(0o644)
        for key, value, words in (
            ("hostkey", '"ssh-ed25519"', "must be a public key of the server"),
            ("hostkey", "[]", "must be a public key, or a list of up to 16"),
            ("hostkey", "true", "must be a public key, or a list of up to 16"),
            ("keyfile", f'"{self.key}"', "must be accessible by its owner only"),
            ("directory", '"a/../b"', "must be a path of up to 512 characters"),
            ("directory", '"a/{nod}"', "has the unknown placeholder '{nod}'"),
            ("port", "0", "must be a whole number from 1 to 65535"),
            ("user", '"a\\nb"', "must be one line of text"),
        ):
            problem = self.only_problem(
                f'[general]\nwritelocal = true\nlocaldir = "/tmp"\n[http]\nlisten = "unix:s:mode=600"\n'
                f"[sftp]\n{key} = {value}\n"
            )
            self.assertIn(words, problem)
            self.assertTrue(problem.startswith(f"sftp.{key} = "), problem)
