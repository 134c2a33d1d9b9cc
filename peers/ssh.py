"""OpenSSH: its client, with keys and known hosts of its own, and its server, for files only."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import subprocess
import tempfile
import weakref
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from peers.process import OwnProcess, answers, free_port
from peers.requirement import require_command

#: What C{ssh} returns if it could not connect, or not log in (ssh(1), EXIT STATUS).
FAILED = 255


class SshClient:
    """
    An ssh client, which reads nothing of the user's.

    @ivar directory: where its files are.
    @ivar known_hosts: where it remembers host keys. The first key of a host is accepted, and
        another one later is not.
    """

    def __init__(self) -> None:
        self._ssh = require_command("ssh", "openssh-client")
        self._ssh_keygen = require_command("ssh-keygen", "openssh-client")
        directory = tempfile.TemporaryDirectory(prefix="pcapsvc-ssh-")
        self.directory = Path(directory.name)
        self.known_hosts = self.directory / "known_hosts"
        self._remove = weakref.finalize(self, directory.cleanup)

    def stop(self) -> None:
        """Remove its files."""
        self._remove()

    def make_key(self, name: str = "id", *, kind: str = "ed25519", comment: str = "alice@example") -> str:
        """
        Make a key.

        @return: the public key, as a line of authorized_keys.
        """
        path = self.directory / name
        _make_key(self._ssh_keygen, path, kind, comment)
        return path.with_suffix(".pub").read_text()

    def arguments(
        self,
        *command: str,
        port: int | None = None,
        socket: str | None = None,
        key: str | None = "id",
        options: tuple[str, ...] = (),
    ) -> list[str]:
        """
        A command line.

        @param command: what the other side is to run; nothing is a shell.
        @param socket: the path of a unix socket, instead of a port.
        @param key: the name of the key; L{None} has none.
        @param options: more options of ssh, which win over those here.
        """
        where = (
            ["-p", str(port)]
            if socket is None
            else ["-o", f"ProxyCommand={require_command('nc', 'netcat-openbsd')} -U {socket}"]
        )
        return [
            self._ssh,
            "-F",
            "none",
            *options,
            *where,
            "-o",
            f"UserKnownHostsFile={self.known_hosts}",
            "-o",
            "GlobalKnownHostsFile=/dev/null",
            "-o",
            "StrictHostKeyChecking=accept-new",
            "-o",
            "IdentityAgent=none",
            "-o",
            "IdentitiesOnly=yes",
            "-o",
            f"IdentityFile={'none' if key is None else self.directory / key}",
            "-o",
            # It must not ask anybody for a password: nobody is there.
            "NumberOfPasswordPrompts=0",
            "operator@127.0.0.1",
            *command,
        ]


class SftpServer:
    """
    OpenSSH's sshd on a free port. It accepts one key, and serves files only.

    @ivar port: its port.
    @ivar user: who logs in: nobody, if this is root, and otherwise whoever this is.
    @ivar directory: a directory of this user.
    @ivar key_file: the private key that it accepts.
    @ivar host_keys: its public keys, as lines, by type. All servers of this process have the same RSA key.
    """

    def __init__(self, *, host: str = "127.0.0.1", wrapper: Sequence[str] = ()) -> None:
        """
        @param host: the address to listen on.
        @param wrapper: a prefix of the command, such as C{ip netns exec NAME}.
        """
        self._host = host
        self._command = [*wrapper, require_command("sshd", "openssh-server")]
        keygen = require_command("ssh-keygen", "openssh-client")
        self._process = OwnProcess("sshd")
        self.port = free_port()
        self.user = "nobody" if os.geteuid() == 0 else getpass.getuser()
        home = self._process.directory
        # The user has to get through it.
        home.chmod(0o755)
        self.directory = home / "files"
        self.directory.mkdir(mode=0o755)
        if os.geteuid() == 0:
            shutil.chown(self.directory, self.user)
            # Where it goes before a login (sshd(8)).
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self.key_file = home / "id"
        self.host_keys: dict[str, str] = {}
        for path in (self.key_file, home / "ed25519"):
            _make_key(keygen, path, "ed25519", path.name)
        _copy_rsa_key(keygen, home)
        for name in ("ed25519", "rsa"):
            self.host_keys[name] = (home / f"{name}.pub").read_text().strip()
        self.authorized_keys = home / "authorized_keys"
        self.authorize(self.key_file.with_suffix(".pub").read_text())
        self.configure()

    def configure(self, *lines: str, host_keys: tuple[str, ...] = ("ed25519", "rsa")) -> None:
        """
        Write its configuration, for the next start.

        @param lines: of sshd_config(5), which win over those here.
        @param host_keys: the types of those that it has.
        """
        home = self._process.directory
        usual = [
            f"Port {self.port}",
            f"ListenAddress {self._host}",
            *(f"HostKey {home / name}" for name in host_keys),
            "PidFile none",
            "UsePAM no",
            "StrictModes no",
            "AuthenticationMethods publickey",
            f"AuthorizedKeysFile {self.authorized_keys}",
            *([] if lines else ["Subsystem sftp internal-sftp", "ForceCommand internal-sftp"]),
            "LogLevel VERBOSE",
            "MaxStartups 100:30:200",
        ]
        (home / "sshd_config").write_text("\n".join([*lines, *usual, ""]))

    def authorize(self, line: str) -> None:
        """Accept this key, and no other."""
        self.authorized_keys.write_text(line)
        self.authorized_keys.chmod(0o644)

    def start(self) -> None:
        """Start it."""
        path = str(self._process.directory / "sshd_config")
        self._process.start([*self._command, "-D", "-e", "-f", path], lambda: answers(self.port, self._host))

    def end(self) -> None:
        """End it, with all of its connections. It can be started again."""
        self.kill_sessions()
        self._process.end()

    def stop(self) -> None:
        """End it, and remove its directory."""
        if self._process.is_running:
            self.kill_sessions()
        self._process.clean_up()

    @property
    def log(self) -> str:
        """What it has logged."""
        return self._process.log

    def sessions(self) -> list[int]:
        """The process ids of its connections."""
        return _descendants(self._process.pid)

    def kill_sessions(self) -> None:
        """Kill the processes of all of its connections."""
        self.signal_sessions(signal.SIGKILL)

    def signal_sessions(self, number: int) -> None:
        """Send a signal to the processes of all of its connections."""
        for pid in self.sessions():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass


def _make_key(keygen: str, path: Path, kind: str, comment: str) -> None:
    """Make a key without a passphrase, in two files. The usual kind takes no process of its own."""
    if kind != "ed25519":
        command = [keygen, "-q", "-t", kind, "-N", "", "-C", comment, "-f", str(path)]
        subprocess.run(command, check=True, timeout=60, stdin=subprocess.DEVNULL)
        return
    key = Ed25519PrivateKey.generate()
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    path.with_suffix(".pub").write_bytes(public + f" {comment}\n".encode())


@cache
def _rsa_key(keygen: str) -> tuple[bytes, bytes]:
    """An RSA key, private and public: to make one takes up to a second of processor time."""
    with tempfile.TemporaryDirectory(prefix="pcapsvc-rsa-") as directory:
        path = Path(directory, "rsa")
        _make_key(keygen, path, "rsa", path.name)
        return path.read_bytes(), path.with_suffix(".pub").read_bytes()


def _copy_rsa_key(keygen: str, directory: Path) -> None:
    private, public = _rsa_key(keygen)
    path = directory / "rsa"
    path.touch(mode=0o600)
    path.write_bytes(private)
    path.with_suffix(".pub").write_bytes(public)


def _descendants(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(word) for word in path.read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *_descendants(child)]
    return found
