"""The manhole and OpenSSH's client: who gets in, and what a session offers."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet import reactor, task

from peers.ssh import FAILED
from tests.integration.manhole_case import PASSWORD, Client, ManholeCase


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
        """A pasted file is run line by line, and the reactor runs in between."""
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
