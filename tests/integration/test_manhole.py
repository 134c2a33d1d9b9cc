"""The manhole and OpenSSH's client: who gets in, and what a session can do to others."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from twisted.internet import defer, protocol, reactor, task, threads
from twisted.internet.error import ProcessExitedAlready
from twisted.logger import LogEvent, eventAsText, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial import unittest

from pcapsvc.host.manhole import ssh
from pcapsvc.host.manhole.masking import Mask
from pcapsvc.host.manhole.service import ManholeService
from pcapsvc.host.manhole.time_limit import TimeLimit
from peers.ssh import FAILED, SshClient

PASSWORD = "hunter2-hunter2"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What a client did."""

    status: int | None
    output: str
    errors: str


class Client(protocol.ProcessProtocol):
    """
    A client in a process of its own.

    @ivar ended: fires with L{Ended}.
    """

    def __init__(self) -> None:
        self.ended: defer.Deferred[Ended] = defer.Deferred()
        self.output = b""
        self.errors = b""
        self._waiting: list[tuple[bytes, defer.Deferred[None]]] = []
        self._begun: defer.Deferred[None] = defer.Deferred()

    def outReceived(self, data: bytes) -> None:
        """Keep it."""
        self.output += data
        for words, seen in self._waiting:
            if words in self.output and not seen.called:
                seen.callback(None)

    def errReceived(self, data: bytes) -> None:
        """Keep it."""
        self.errors += data

    def processEnded(self, reason: Failure) -> None:
        """Say so."""
        status = reason.value.exitCode  # type: ignore[union-attr]
        self.ended.callback(
            Ended(status=status, output=self.output.decode(errors="replace"), errors=self.errors.decode())
        )

    def seen(self, words: bytes) -> defer.Deferred[None]:
        """Fires as soon as these words were output."""
        seen: defer.Deferred[None] = defer.Deferred()
        self._waiting.append((words, seen))
        self.outReceived(b"")
        return seen

    def type(self, text: str) -> None:
        """Type."""
        assert self.transport is not None
        self.transport.write(text.encode())

    def kill(self) -> None:
        """End it."""
        try:
            self.transport.signalProcess("KILL")  # type: ignore[union-attr]
        except ProcessExitedAlready:
            pass


class ManholeCase(unittest.TestCase):
    """A manhole in this process, and clients in theirs."""

    timeout = 60
    endpoint = "tcp:0:interface=127.0.0.1"

    def setUp(self) -> Any:
        """One that listens, with one key that may log in."""
        self.ssh = SshClient()
        self.addCleanup(self.ssh.stop)
        self.directory = str(self.ssh.directory)
        self.authorized_keys = os.path.join(self.directory, "authorized_keys")
        self.host_key = os.path.join(self.directory, "host_key")
        self.authorize(self.ssh.make_key())
        self.names: dict[str, Any] = {"reactor": reactor, "password": PASSWORD}
        self.log: list[str] = []
        globalLogPublisher.addObserver(self._observe)
        self.addCleanup(globalLogPublisher.removeObserver, self._observe)
        return self.start()

    def _observe(self, event: LogEvent) -> None:
        if str(event.get("log_namespace")).startswith("pcapsvc.host.manhole"):
            self.log.append(eventAsText(event, includeTimestamp=False, includeSystem=False))

    async def _start(self) -> None:
        self.manhole = ManholeService(
            reactor,
            listen=self.endpoint,
            authorized_keys=self.authorized_keys,
            host_key=self.host_key,
            namespace=lambda: self.names,
            mask=Mask([PASSWORD]),
            run_in_thread=threads.deferToThread,
            limit=TimeLimit(1.0),
        )
        self.manhole.startService()
        assert self.manhole.listening is not None
        self.port = getattr(await self.manhole.listening, "port", None)

    def start(self) -> defer.Deferred[None]:
        """Start a manhole that stops at the end of the test."""
        started = defer.Deferred.fromCoroutine(self._start())
        self.addCleanup(self.stop)
        return started

    def stop(self) -> Any:
        """Stop it."""
        return self.manhole.stopService() if self.manhole.running else None

    def authorize(self, *lines: str) -> None:
        """Write who may log in."""
        with open(self.authorized_keys, "w") as file:
            file.writelines(lines)
        os.chmod(self.authorized_keys, 0o600)

    def arguments(self, *command: str, **how: Any) -> list[str]:
        """The command line of a client."""
        return self.ssh.arguments(*command, port=self.port, **how)

    def client(self, *command: str, **how: Any) -> Client:
        """Start a client, which is ended with the test at the latest."""
        client = Client()
        words = self.arguments(*command, **how)
        reactor.spawnProcess(client, words[0], words, env=os.environ)  # type: ignore[attr-defined]
        self.addCleanup(lambda: None if client.ended.called else self._end(client))
        return client

    def _end(self, client: Client) -> Any:
        client.kill()
        return client.ended

    def run_client(self, *command: str, **how: Any) -> defer.Deferred[Ended]:
        """Run a client until it ends."""
        return self.client(*command, **how).ended

    async def until(self, look: Callable[[], Any], what: str) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + 60
        while not look():
            self.assertLess(time.monotonic(), deadline, f"waited for {what} in vain: {self.log}")
            await task.deferLater(reactor, 0.02)  # type: ignore[arg-type]


class LoginTests(ManholeCase):
    """Who gets in."""

    async def check_refused(self, **how: Any) -> None:
        """It is not let in, and runs nothing."""
        ended = await self.run_client("print('inside')", **how)
        self.assertEqual((ended.status, ended.output), (FAILED, ""), ended.errors)
        self.assertIn("Permission denied (publickey).", ended.errors)

    async def test_key(self) -> None:
        """Whoever has an authorized key runs Python, whatever the name; the exit status says how it went."""
        ended = await self.run_client("6 * 7; print('inside')")
        self.assertEqual((ended.status, ended.output), (0, "42\ninside\n"), ended.errors)
        ended = await self.run_client("1 / 0")
        self.assertEqual(ended.status, 1)
        self.assertIn("ZeroDivisionError", ended.output)

    async def test_types_of_keys(self) -> None:
        """Keys of other types get in as well, RSA with SHA-2."""
        lines = [self.ssh.make_key(kind, kind=kind) for kind in ("rsa", "ecdsa")]
        self.authorize(*lines)
        for kind in ("rsa", "ecdsa"):
            ended = await self.run_client("1", key=kind)
            self.assertEqual((ended.status, ended.output), (0, "1\n"), ended.errors)
        await self.check_refused()

    async def test_sha_1(self) -> None:
        """A signature with SHA-1 gets nobody in."""
        self.authorize(self.ssh.make_key("rsa", kind="rsa"))
        await self.check_refused(key="rsa", options=("-o", "PubkeyAcceptedAlgorithms=ssh-rsa"))

    async def test_wrong_key(self) -> None:
        """Another key is refused, and logged."""
        self.ssh.make_key("wrong")
        await self.check_refused(key="wrong")
        await self.until(
            lambda: any("did not log in; its key SHA256:" in line for line in self.log), "a line in the log"
        )

    async def test_no_key(self) -> None:
        """Without a key nobody gets in: neither passwords nor questions are offered."""
        await self.check_refused(key=None)
        words = "PreferredAuthentications=password,keyboard-interactive,hostbased,none"
        await self.check_refused(
            options=("-o", words, "-o", "NumberOfPasswordPrompts=1", "-o", "BatchMode=yes")
        )

    async def test_removed_key(self) -> None:
        """A key that is removed from the file gets nobody in any more, without a restart."""
        self.authorize(self.ssh.make_key("other"))
        await self.check_refused()
        ended = await self.run_client("1", key="other")
        self.assertEqual(ended.status, 0)

    async def test_unsafe_file(self) -> None:
        """If others can write the file, nobody gets in, and the log says why."""
        os.chmod(self.authorized_keys, 0o666)
        await self.check_refused()
        self.assertTrue(any("must not be writable by group or others" in line for line in self.log), self.log)

    async def test_host_key_survives(self) -> None:
        """The host key is the same after a restart: a client that remembers it connects."""
        self.assertEqual((await self.run_client("1")).status, 0)
        remembered = self.ssh.known_hosts.read_text()
        port = self.port
        await self.manhole.stopService()
        self.endpoint = f"tcp:{port}:interface=127.0.0.1"
        await self.start()
        self.assertEqual((await self.run_client("1")).status, 0)
        self.assertEqual(self.ssh.known_hosts.read_text(), remembered)
        self.assertEqual(os.stat(self.host_key).st_mode & 0o777, 0o600)
        # And if it was not, the client would refuse.
        await self.manhole.stopService()
        os.unlink(self.host_key)
        await self.start()
        self.assertEqual((await self.run_client("1")).status, FAILED)

    async def test_unix_socket(self) -> None:
        """It may listen on a unix socket, which netcat reaches for ssh."""
        await self.manhole.stopService()
        path = os.path.join(self.directory, "manhole.sock")
        self.endpoint = f"unix:{path}"
        await self.start()
        words = self.ssh.arguments("6 * 7", socket=path)
        client = Client()
        reactor.spawnProcess(client, words[0], words, env=os.environ)  # type: ignore[attr-defined]
        ended = await client.ended
        self.assertEqual((ended.status, ended.output), (0, "42\n"), ended.errors)
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o660)
        self.assertTrue(
            any(f"from the unix socket (uid {os.getuid()})" in line for line in self.log), self.log
        )

    async def test_algorithms(self) -> None:
        """Nothing with SHA-1, MD5 or CBC is offered, and no compression."""
        for options in (
            "KexAlgorithms=diffie-hellman-group14-sha1",
            "Ciphers=aes256-cbc",
            "MACs=hmac-sha1",
            "MACs=hmac-md5",
        ):
            ended = await self.run_client("1", options=("-o", options))
            self.assertEqual(ended.status, FAILED, options)
        ended = await self.run_client("1", options=("-v", "-o", "Compression=yes"))
        self.assertIn("compression: none", ended.errors)
        self.assertEqual(ended.status, 0)


class ServiceTests(ManholeCase):
    """What else a client may ask for."""

    async def test_nothing_else(self) -> None:
        """No ports are forwarded, and there are no subsystems."""
        ended = await self.run_client(options=("-N", "-R", "0:127.0.0.1:1", "-o", "ExitOnForwardFailure=yes"))
        self.assertEqual(ended.status, FAILED)
        self.assertIn("forwarding failed", ended.errors)
        ended = await self.run_client(options=("-W", f"127.0.0.1:{self.port}"))
        self.assertEqual(ended.status, FAILED)
        ended = await self.run_client("sftp", options=("-s",))
        self.assertEqual(ended.status, FAILED)
        self.assertEqual(self.flushLoggedErrors(), [])

    async def test_shell_needs_a_terminal(self) -> None:
        """Without a terminal there is no shell, and what to do instead is said."""
        ended = await self.run_client(options=("-T",))
        self.assertEqual(ended.status, 1)
        self.assertIn("needs a terminal (ssh -t), or a command", ended.errors)

    async def test_command_waits(self) -> None:
        """A command ends when what it shows has fired."""
        self.names["later"] = lambda: task.deferLater(reactor, 0.3, lambda: "done")  # type: ignore[arg-type]
        ended = await self.run_client("later()")
        self.assertEqual(ended.output, "<Deferred #0, which has not fired>\nDeferred #0: 'done'\n")
        self.assertEqual(ended.status, 0)

    async def test_secrets(self) -> None:
        """A configured secret is printed by no expression that has it, nor logged."""
        for expression in (
            "password",
            "print(password)",
            "[password]",
            "'{0}'.format(password)",
            "raise ValueError(password)",
            "password.encode()",
            f"'{PASSWORD}'",
            "import sys; sys.stderr.write(password)",
            "for c in password: print(c, end='')",
            "vars()",
            "globals()",
        ):
            ended = await self.run_client(expression)
            self.assertNotIn(PASSWORD, ended.output + ended.errors, expression)
            self.assertIn("<secret>", ended.output, expression)
        self.assertNotIn(PASSWORD, "".join(self.log))

    async def test_log(self) -> None:
        """Each session is logged, with whose key it is and from where, and each line that is entered."""
        await self.run_client("x = '''\n\x1b[31mred'''" + "#" * 2000)
        await self.until(lambda: any("ended" in line for line in self.log), "the end")
        lines = [line for line in self.log if "manhole session 1" in line]
        self.assertEqual(len(lines), 3, lines)
        self.assertRegex(
            lines[0], r"^manhole session 1: begun by SHA256:\S{43} \(alice@example\) from 127\.0\.0\.1:\d+$"
        )
        self.assertTrue(lines[1].startswith("manhole session 1: x = ''' [31mred'''###"), lines[1])
        self.assertLess(len(lines[1]), 1100)
        self.assertEqual(lines[2], "manhole session 1: ended")


class TerminalTests(ManholeCase):
    """The console at a terminal."""

    def terminal(self) -> Client:
        """A client with a terminal."""
        return self.client(options=("-tt",))

    async def test_session(self) -> None:
        """Lines are edited and run, values come later, and Ctrl-D leaves."""
        self.names["later"] = lambda: task.deferLater(reactor, 0.1, lambda: "done")  # type: ignore[arg-type]
        client = self.terminal()
        await client.seen(b">>> ")
        # Two to the left, and one in between.
        client.type("print(6 * 70)\x1b[D\x1b[D\x7f1\r")
        await client.seen(b"\r\n60\r\n")
        client.type("'a' 'b'\r")
        await client.seen(b"'ab'\r\n")
        client.type("for i in range(3):\r    print('i', i)\r\r")
        await client.seen(b"i 2\r\n")
        client.type("later()\r")
        await client.seen(b"Deferred #0: 'done'\r\n>>> ")
        client.type("\x1b[A\x1b[A")  # up
        client.type("\x03")  # Ctrl-C
        await client.seen(b"KeyboardInterrupt")
        client.type("\x04")
        ended = await client.ended
        self.assertEqual(ended.status, 0, ended.errors)

    async def test_exit(self) -> None:
        """C{exit()} leaves the session, and not the daemon."""
        client = self.terminal()
        await client.seen(b">>> ")
        client.type("exit()\r")
        self.assertEqual((await client.ended).status, 0)
        self.assertEqual((await self.run_client("1")).status, 0)

    async def test_a_terminal_as_before(self) -> None:
        """The terminal is left in the state in which it was: neither reset nor in another mode."""
        client = self.terminal()
        await client.seen(b">>> ")
        client.type("1\r\x04")
        ended = await client.ended
        self.assertNotIn("\x1bc", ended.output)
        self.assertNotIn("\x1b[4h", ended.output)

    async def test_pasted(self) -> None:
        """A file that is pasted is run line by line, and the reactor has its turns in between."""
        client = self.terminal()
        await client.seen(b">>> ")
        self.names["count"] = 0
        turns = 0

        def turn() -> None:
            nonlocal turns
            turns += 1

        ticking = task.LoopingCall(turn)
        ticking.start(0)
        client.type("import time\r" + "time.sleep(0.02)\r" * 20 + "'the ' 'end'\r")
        await client.seen(b"'the end'")
        ticking.stop()
        self.assertGreater(turns, 20)

    async def test_long_line(self) -> None:
        """A line that is too long is cut, and the terminal rings."""
        client = self.terminal()
        await client.seen(b">>> ")
        client.type("#" * 5000)
        await client.seen(b"\a")
        client.type("\r1 + 1\r")
        await client.seen(b"\r\n2\r\n")


class BoundTests(ManholeCase):
    """What clients may take of the daemon."""

    async def test_endless_line(self) -> None:
        """A line that doesn't end is interrupted; a session that floods is cut."""
        began = time.monotonic()
        ended = await self.run_client("while True: pass")
        self.assertEqual(ended.status, 1)
        self.assertIn("TakesTooLong", ended.output)
        ended = await self.run_client("while True: print('flood')")
        self.assertIn("more characters were cut off", ended.output)
        self.assertIn("TakesTooLong", ended.output)
        self.assertLess(len(ended.output), 70_000)
        self.assertLess(time.monotonic() - began, 60)

    async def test_client_that_does_not_read(self) -> None:
        """A client that leaves too much unread is disconnected."""
        client = self.client(options=("-tt",))
        await client.seen(b">>> ")
        client.transport.pauseProducing()  # type: ignore[union-attr]
        client.type("print('x' * 60_000)\r" * 500)
        await self.until(lambda: any("does not read; disconnected" in line for line in self.log), "that")
        client.transport.resumeProducing()  # type: ignore[union-attr]
        await client.ended
        self.assertEqual((await self.run_client("1")).status, 0)

    async def test_sessions(self) -> None:
        """No more sessions than so many are open at once, and the next one is when one is closed."""
        clients = [self.client(options=("-tt",)) for _ in range(2)]
        self.patch(ssh, "MAX_CONNECTIONS", 2)
        for client in clients:
            await client.seen(b">>> ")
        self.assertEqual((await self.run_client("1")).status, FAILED)
        clients[0].type("\x04")
        await clients[0].ended
        await self.until(lambda: sum("ended" in line for line in self.log) == 1, "the end of a session")
        self.assertEqual((await self.run_client("1")).status, 0)

    async def test_stop(self) -> None:
        """A stop closes all sessions at once, whatever their clients do."""
        clients = [self.client(options=("-tt",)) for _ in range(2)]
        for client in clients:
            await client.seen(b">>> ")
        clients[0].transport.signalProcess(signal.SIGSTOP)  # type: ignore[union-attr]
        began = time.monotonic()
        await self.manhole.stopService()
        self.assertLess(time.monotonic() - began, 8.0)
        clients[0].transport.signalProcess(signal.SIGCONT)  # type: ignore[union-attr]
        for client in clients:
            self.assertEqual((await client.ended).status, FAILED)


class StrangerTests(ManholeCase):
    """Connections that don't log in."""

    def connect(self, data: Sequence[bytes] = ()) -> Stranger:
        """One that sends something."""
        stranger = Stranger(list(data))
        reactor.connectTCP("127.0.0.1", self.port, _Once(stranger))  # type: ignore[attr-defined]
        self.addCleanup(stranger.close)
        return stranger

    async def test_login_time(self) -> None:
        """Whoever does not log in within some time is disconnected, such as one that says nothing."""
        self.patch(ssh, "LOGIN_SECONDS", 0.2)
        stranger = self.connect()
        await stranger.closed

    async def test_nonsense(self) -> None:
        """Malformed packets close their connection, and log a line."""
        for data in (
            b"GET / HTTP/1.1\r\n\r\n" * 1000,
            b"SSH-2.0-x\r\n" + bytes(range(256)) * 20,
            b"SSH-2.0-x\r\n\0\0\0\x0c\x0a\x14" + b"\0" * 10,
            b"SSH-\n",
        ):
            await self.connect([data]).closed
        self.assertEqual((await self.run_client("1")).status, 0)
        self.assertEqual(self.flushLoggedErrors(), [])

    async def test_strangers(self) -> None:
        """A few may try at once; those who come and go cannot do so faster than that."""
        strangers = [self.connect() for _ in range(12)]
        await defer.DeferredList([stranger.closed for stranger in strangers[8:]])
        self.assertFalse(any(stranger.closed.called for stranger in strangers[:8]))
        for stranger in strangers[:8]:
            stranger.close()
            await stranger.closed
        self.assertEqual((await self.run_client("1")).status, FAILED)
        await task.deferLater(reactor, ssh.PENALTY_SECONDS)  # type: ignore[arg-type]
        self.assertEqual((await self.run_client("1")).status, 0)


class Stranger(protocol.Protocol):
    """
    A connection that sends something, and waits.

    @ivar closed: fires when it was closed.
    """

    def __init__(self, data: list[bytes]) -> None:
        self._data = data
        self.closed: defer.Deferred[None] = defer.Deferred()

    def connectionMade(self) -> None:
        """Send."""
        assert self.transport is not None
        self.transport.writeSequence(self._data)

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        """Say so."""
        self.closed.callback(None)

    def close(self) -> None:
        """Close it."""
        if self.transport is not None and not self.closed.called:
            self.transport.abortConnection()


class _Once(protocol.ClientFactory):
    noisy = False

    def __init__(self, made: protocol.Protocol) -> None:
        self._made = made

    def buildProtocol(self, addr: object) -> Any:
        return self._made
