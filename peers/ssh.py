"""OpenSSH's client, with keys and known hosts of its own."""

from __future__ import annotations

import subprocess
import tempfile
import weakref
from pathlib import Path

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
        subprocess.run(
            [self._ssh_keygen, "-q", "-t", kind, "-N", "", "-C", comment, "-f", str(path)],
            check=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )
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
