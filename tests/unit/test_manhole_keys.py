"""The files of the manhole: who may log in, and the host's own key."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from shutil import which
from unittest import skipUnless

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from twisted.trial import unittest

from pcapsvc.host.manhole.keys import (
    authorized_keys_problems,
    fingerprint,
    host_key_problems,
    load_host_key,
    read_authorized_keys,
)
from tests.unit.bad_disk import refuse_syncing


def public(key: object) -> str:
    """A public key, as a line of authorized_keys."""
    return (
        key.public_key()  # type: ignore[attr-defined]
        .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        .decode()
    )


def private(key: object, passphrase: bytes | None = None) -> bytes:
    """A private key in OpenSSH format."""
    encryption = (
        serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    )
    content: bytes = key.private_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, encryption
    )
    return content


ED25519 = ed25519.Ed25519PrivateKey.generate()
LINE = public(ED25519)


class KeysCase(unittest.SynchronousTestCase):
    """A directory."""

    def setUp(self) -> None:
        """Make it."""
        self.directory = self.mktemp()
        os.mkdir(self.directory)
        self.path = os.path.join(self.directory, "file")

    def write(self, content: str | bytes, mode: int = 0o600) -> None:
        """Write the file."""
        with open(self.path, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
        os.chmod(self.path, mode)


class AuthorizedKeysTests(KeysCase):
    """authorized_keys."""

    def check_problem(self, problem: str) -> None:
        """There is one problem, which begins like this."""
        found = list(authorized_keys_problems(self.path))
        self.assertEqual(len(found), 1, found)
        self.assertTrue(found[0].startswith(problem), found[0])

    def test_keys(self) -> None:
        """All types of key that are strong are understood; comments and empty lines are passed over."""
        lines = [
            LINE + " alice@example\x1b[31m",
            public(ec.generate_private_key(ec.SECP256R1())),
            public(ec.generate_private_key(ec.SECP384R1())) + "  bob's  key",
            public(ec.generate_private_key(ec.SECP521R1())),
            public(rsa.generate_private_key(65537, 2048)),
        ]
        self.write("# keys\n\n" + "\r\n  ".join(lines) + "\n")
        self.assertEqual(list(authorized_keys_problems(self.path)), [])
        found = read_authorized_keys(self.path)
        comments = [key.comment for key in found.keys.values()]
        self.assertEqual(comments, ["alice@example [31m", "", "bob's key", "", ""])
        first = next(iter(found.keys.values()))
        self.assertTrue(first.fingerprint.startswith("SHA256:"))
        self.assertEqual(str(first), f"{first.fingerprint} (alice@example [31m)")

    def test_byte_order_mark(self) -> None:
        """The byte order mark that some editors put at the start is skipped."""
        self.write("\ufeff" + LINE + "\n")
        self.assertEqual(list(authorized_keys_problems(self.path)), [])
        self.assertEqual(len(read_authorized_keys(self.path).keys), 1)

    def test_lines_that_are_refused(self) -> None:
        """A line that gives no key is a problem with its number."""
        weak = public(rsa.generate_private_key(65537, 1024))
        old = public(dsa.generate_private_key(1024))
        for line, problem in (
            (f'from="10.0.0.1" {LINE}', "has options in front of the key"),
            (f'no-pty,command="a \\" b" {LINE}', "has options in front of the key"),
            (f"restrict {LINE}", "has options in front of the key"),
            (f"cert-authority {LINE}", "has options in front of the key"),
            (weak, "has an RSA key of less than 2048 bits"),
            (old, "has a DSA key"),
            ("ssh-ed25519 AAAA", "has a key that is broken"),
            ("ssh-ed25519", "has a key that is broken"),
            (LINE.replace("ssh-ed25519", "ssh-rsa"), "has a key that is of another type"),
            ("hello world", "does not begin with a type of key"),
        ):
            self.write(f"{LINE}\n{line}\n")
            self.check_problem(f"must be an authorized_keys file, and line 2 {problem}")

    def test_the_others_count(self) -> None:
        """At a login, a line that gives no key doesn't keep the others from being used."""
        self.write(f"nonsense\n{LINE}\n")
        found = read_authorized_keys(self.path)
        self.assertEqual(len(found.keys), 1)
        self.assertEqual(len(found.problems), 1)

    def test_no_key(self) -> None:
        """A file without keys lets nobody in, which nobody wants."""
        self.write("# nothing\n")
        self.check_problem("must be an authorized_keys file, and it holds no key")

    def test_others_may_write(self) -> None:
        """A file that others may write is refused, as OpenSSH does."""
        for mode in (0o620, 0o602, 0o666):
            self.write(LINE, mode)
            self.check_problem(f"must not be writable by group or others, and its mode is {mode:04o}")
        self.write(LINE, 0o644)
        self.assertEqual(list(authorized_keys_problems(self.path)), [])

    def test_not_a_file(self) -> None:
        """What is not a file is not waited for."""
        self.check_problem("must be a file that can be read (No such file")
        os.mkfifo(self.path)
        self.check_problem("must be a regular file")
        os.unlink(self.path)
        os.mkdir(self.path)
        self.check_problem("must be a regular file")

    def test_too_large(self) -> None:
        """Not much is read."""
        self.write("#" * (1024 * 1024 + 1))
        self.check_problem("must be a file of at most")

    @skipUnless(os.geteuid() == 0, "needs root to give a file away")
    def test_of_another(self) -> None:
        """A file of another user is refused."""
        self.write(LINE)
        os.chown(self.path, 12345, -1)
        self.check_problem("must belong to the user of the daemon, or to root")


class HostKeyTests(KeysCase):
    """The host key."""

    def test_simple_file_system(self) -> None:
        """A file system without links, and without syncing of directories, is good enough."""

        def no_link(*_: object, **__: object) -> None:
            raise OSError(errno.EPERM, "no links")

        refuse_syncing(self, errno.EINVAL)
        self.patch(os, "link", no_link)
        key, created = load_host_key(self.path)
        self.assertTrue(created)
        self.assertEqual(load_host_key(self.path), (key, False))
        self.assertEqual(os.listdir(self.directory), ["file"])

    def test_created(self) -> None:
        """It is created for its owner alone, and stays."""
        before = os.umask(0)
        self.addCleanup(os.umask, before)
        self.assertEqual(list(host_key_problems(self.path)), [])
        key, created = load_host_key(self.path)
        self.assertTrue(created)
        self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o600)
        self.assertEqual(os.listdir(self.directory), ["file"])
        again, created = load_host_key(self.path)
        self.assertFalse(created)
        self.assertEqual(again, key)
        self.assertEqual(key.sshType(), b"ssh-ed25519")
        self.assertEqual(list(host_key_problems(self.path)), [])

    @skipUnless(which("ssh-keygen"), "needs ssh-keygen")
    def test_understood_by_openssh(self) -> None:
        """OpenSSH reads it, and shows the same fingerprint."""
        key, _ = load_host_key(self.path)
        shown = subprocess.run(
            ["ssh-keygen", "-l", "-f", self.path], capture_output=True, text=True, check=True, timeout=30
        )
        self.assertEqual(shown.stdout.split()[1], fingerprint(key))

    def test_kept(self) -> None:
        """A key that is there is never replaced, even if it can't be used."""
        self.write("broken")
        self.assertRaises(ValueError, load_host_key, self.path)
        with open(self.path) as file:
            self.assertEqual(file.read(), "broken")

    def test_given(self) -> None:
        """A key of another type may be given."""
        for key in (ED25519, ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)):
            self.write(private(key))
            self.assertEqual(list(host_key_problems(self.path)), [])

    def test_refused(self) -> None:
        """What can't be used is a problem when the configuration is read."""
        for content, problem in (
            (private(ED25519, b"secret"), "must be a private key in OpenSSH format, without a passphrase"),
            (b"nonsense", "must be a private key in OpenSSH format, without a passphrase"),
            (LINE.encode(), "must be a private key in OpenSSH format, and it is a public one"),
            (private(rsa.generate_private_key(65537, 1024)), "must be a stronger key"),
        ):
            self.write(content)
            found = list(host_key_problems(self.path))
            self.assertEqual(len(found), 1, found)
            self.assertTrue(found[0].startswith(problem), found)

    def test_others_may_read(self) -> None:
        """A key that others may read is refused, as OpenSSH does."""
        for mode in (0o640, 0o604, 0o660, 0o710):
            self.write(private(ED25519), mode)
            self.assertEqual(
                list(host_key_problems(self.path)),
                [f"must not be accessible by group or others (mode 0600), and its mode is {mode:04o}"],
            )
            self.assertRaises(ValueError, load_host_key, self.path)

    def test_no_directory(self) -> None:
        """A path at which no key can be created is a problem when the configuration is read."""
        self.path = os.path.join(self.directory, "none", "file")
        (found,) = host_key_problems(self.path)
        self.assertTrue(found.startswith("must be in a directory that exists"), found)
        self.assertRaises(ValueError, load_host_key, self.path)
