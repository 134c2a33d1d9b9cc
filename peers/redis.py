"""A real redis-server in a process of its own."""

from __future__ import annotations

import hashlib
import json
import secrets
import signal
import socket
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from peers.certificates import Authority
from peers.process import OwnProcess, answers, free_port
from peers.requirement import require_command

_PEER = "pcapsvc-peer"
_PATIENCE_SECONDS = 180.0

Reply = int | bytes | None | list["Reply"]


class RedisRefused(Exception):
    """The server answered with an error; the message is the server's."""


def _read_reply(stream: IO[bytes]) -> Reply:
    """Read one reply of the Redis serialization protocol, version 2."""
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionError("redis-server closed the connection")
    kind, rest = line[:1], line[1:-2]
    if kind == b"+":
        return rest
    if kind == b"-":
        raise RedisRefused(rest.decode())
    if kind == b":":
        return int(rest)
    length = int(rest)
    if length < 0:
        return None
    if kind == b"$":
        return stream.read(length + 2)[:-2]
    return [_read_reply(stream) for _ in range(length)]


class RedisServer:
    """
    A redis-server on a free port that keeps nothing on disk.

    @ivar host: its address.
    @ivar port: its port, the same after a restart.
    @ivar password: the password of the default user (C{requirepass}), or L{None}.
    @ivar ca_file: with TLS, the path of the certificate of the authority that issued the server's, which is
        valid for C{localhost} and C{127.0.0.1}; otherwise L{None}.
    """

    def __init__(
        self,
        *,
        password: str | None = None,
        users: Mapping[str, str] | None = None,
        tls: bool = False,
        host: str = "127.0.0.1",
        wrapper: Sequence[str] = (),
    ) -> None:
        """
        @param users: ACL users and their passwords. If there are any, and no C{password}, the default user is
            disabled.
        @param tls: accept TLS only.
        @param wrapper: a prefix of the command, such as C{ip netns exec NAME}.
        """
        self._command = [*wrapper, require_command("redis-server", "redis-server")]
        self.host = host
        self._process = OwnProcess("redis")
        self.port = free_port()
        self.password = password
        self.ca_file: Path | None = None
        self._own_password = secrets.token_hex()
        lines = [
            f"bind {host}",
            # In protected mode, without a password, it would accept only its own host.
            "protected-mode no",
            f"port {0 if tls else self.port}",
            f"dir {self._process.directory}",
            'save ""',
            "appendonly no",
            "daemonize no",
            # Our own user, whatever the default user is permitted.
            f"user {_PEER} on >{self._own_password} ~* &* +@all",
        ]
        for name, secret in (users or {}).items():
            lines.append(f"user {name} on #{hashlib.sha256(secret.encode()).hexdigest()} ~* &* +@all")
        if password is not None:
            lines.append(f"requirepass {json.dumps(password, ensure_ascii=False)}")
        elif users:
            lines.append("user default off")
        if tls:
            authority = Authority(self._process.directory)
            own = authority.issue("redis")
            self.ca_file = authority.file
            lines += [
                f"tls-port {self.port}",
                f"tls-cert-file {own.certificate}",
                f"tls-key-file {own.key}",
                f"tls-ca-cert-file {authority.file}",
                "tls-auth-clients no",
            ]
        self._configuration = self._process.directory / "redis.conf"
        self._configuration.touch(mode=0o600)
        self._configuration.write_text("\n".join(lines) + "\n")

    @property
    def pid(self) -> int:
        """The server's process id, while it runs."""
        return self._process.pid

    def listen_on(self, port: int) -> None:
        """Use another port, from the next start on."""
        text = self._configuration.read_text()
        self._configuration.write_text(text.replace(f"port {self.port}\n", f"port {port}\n"))
        self.port = port

    @property
    def is_running(self) -> bool:
        """Whether it was started, and has not ended since: a crash is an end, too."""
        return self._process.is_running

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._process.start([*self._command, str(self._configuration)], self._answers)

    def stop(self) -> None:
        """End it for good, even if it is frozen or not running."""
        self._process.clean_up()

    def end(self) -> None:
        """End it, so that it can be started again."""
        self._process.end()

    def restart(self) -> None:
        """End it, and start it on the same port."""
        self.end()
        self.start()

    def freeze(self) -> None:
        """Freeze its process: connections stay open, and nothing answers."""
        self._process.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume the frozen process."""
        self._process.signal(signal.SIGCONT)

    def publish(self, channel: str, body: bytes) -> int:
        """
        Publish a message.

        @return: how many subscribers received it.
        """
        receivers = self.command("PUBLISH", channel, body)
        assert isinstance(receivers, int)
        return receivers

    def subscribers(self, channel: str) -> int:
        """How many connections are subscribed to a channel."""
        reply = self.command("PUBSUB", "NUMSUB", channel)
        assert isinstance(reply, list) and isinstance(reply[1], int)
        return reply[1]

    def drop_subscribers(self) -> None:
        """Close every connection that is subscribed to something."""
        self.command("CLIENT", "KILL", "TYPE", "pubsub")

    def command(self, *words: str | bytes, user: str | None = _PEER, password: str | None = None) -> Reply:
        """
        Send one command on a connection of its own.

        @param user: the user to log in as; L{None} not to log in.
        @raise RedisRefused: the server answered with an error.
        """
        if user == _PEER:
            password = self._own_password
        with socket.create_connection((self.host, self.port), timeout=_PATIENCE_SECONDS) as plain:
            connection = plain
            if self.ca_file is not None:
                trusting = ssl.create_default_context(cafile=str(self.ca_file))
                connection = trusting.wrap_socket(plain, server_hostname="localhost")
            with connection, connection.makefile("rwb") as stream:
                if user is not None:
                    self._say(stream, "AUTH", user, password or "")
                return self._say(stream, *words)

    @staticmethod
    def _say(stream: IO[bytes], *words: str | bytes) -> Reply:
        stream.write(b"*%d\r\n" % len(words))
        for word in words:
            raw = word.encode() if isinstance(word, str) else word
            stream.write(b"$%d\r\n%s\r\n" % (len(raw), raw))
        stream.flush()
        return _read_reply(stream)

    def _answers(self) -> bool:
        return answers(self.port, self.host) and self.command("PING") == b"PONG"
