"""The C{twistd} command."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.application.service import IService, IServiceMaker
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.internet.utils import getProcessOutputAndValue
from twisted.logger import globalLogBeginner
from twisted.plugin import getPlugins
from twisted.python.usage import UsageError
from twisted.trial import unittest

import pcapsvc
import twisted
from pcapsvc import tap
from pcapsvc.core.mask import of_process
from pcapsvc.tap import OPTIONS
from peers.certificates import Authority

ROOT = Path(__file__).resolve().parents[2]
QUICK_START = str(ROOT / "examples" / "quickstart.toml")


def options(*given: str) -> tap.Options:
    parsed = tap.Options()
    parsed.parseOptions(list(given))
    return parsed


class OptionsTests(unittest.TestCase):
    """The options of the command line."""

    def test_only_what_was_given(self) -> None:
        """An option that isn't given overrides nothing."""
        self.assertEqual({}, options().overrides())
        self.assertEqual({}, options("--config", "/etc/pcapsvc.toml").overrides())

    def test_each(self) -> None:
        """Each option has its value as it was typed; a flag is true."""
        for name, option in OPTIONS.items():
            if option.kind == "flag":
                self.assertEqual({name: True}, options(f"--{name}").overrides())
            else:
                self.assertEqual({name: "07x"}, options(f"--{name}", "07x").overrides())
                self.assertEqual({name: ""}, options(f"--{name}=").overrides())

    def test_one_dash(self) -> None:
        """One dash is enough, as in the original, and the value may be in the same word or in the next."""
        for name, option in OPTIONS.items():
            if option.kind == "flag":
                self.assertEqual({name: True}, options(f"-{name}").overrides())
            else:
                for value in ("07x", "", "-upload", "a=b", "--"):
                    self.assertEqual({name: value}, options(f"-{name}", value).overrides())
                    self.assertEqual({name: value}, options(f"-{name}={value}").overrides())
        given = options("-config", "a.toml", "-cshost", "h", "--csport", "1", "-upload", "-redisport=2")
        self.assertEqual("a.toml", given["config"])
        self.assertEqual({"cshost": "h", "csport": "1", "upload": True, "redisport": "2"}, given.overrides())

    def test_flag_values(self) -> None:
        """A flag accepts the values that Go accepts; the last one counts."""
        for name in ("upload", "writelocal", "panic"):
            for dashes in ("-", "--"):
                for value in ("1", "t", "T", "true", "TRUE", "True"):
                    self.assertEqual({name: True}, options(f"{dashes}{name}={value}").overrides())
                for value in ("0", "f", "F", "false", "FALSE", "False"):
                    self.assertEqual({name: False}, options(f"{dashes}{name}={value}").overrides())
        self.assertEqual({"upload": False}, options("-upload", "--upload=f").overrides())
        self.assertEqual({"upload": True}, options("-upload=f", "--upload").overrides())

    def test_shortened(self) -> None:
        """A name may be abbreviated if it is unambiguous."""
        self.assertEqual({"upload": True}, options("--uplo").overrides())
        self.assertEqual({"redischannel": "c"}, options("--redisc", "c").overrides())

    def test_refused(self) -> None:
        """Unknown options, options without their value, and arguments that aren't options are rejected."""
        for given in (
            ("--cshots", "x"),
            ("-cshots", "x"),
            ("-uplo",),
            ("---upload",),
            ("-csport",),
            ("--csport",),
            ("-upload", "false"),
            ("--", "-upload"),
            ("-", "-upload"),
        ):
            self.assertRaises(UsageError, options, *given)

    def test_misspelt(self) -> None:
        """For an unknown option, the most similar one is named; and an argument that is none is shown."""
        for given, said in (
            ("--confg", "--confg: is not a known option; did you mean 'config'?"),
            ("--maxpackes=1", "--maxpackes: is not a known option; did you mean 'maxpackets'?"),
            ("stray", '"stray" is not an option; no other arguments are accepted'),
        ):
            self.assertEqual(said, str(self.assertRaises(UsageError, options, given)))

    def test_help(self) -> None:
        """The help lists each option, and says that a token is safer in a file."""
        text = str(tap.Options())
        for name in ("config", *OPTIONS):
            self.assertIn(f"--{name}", text)
        self.assertIn("tokenfile", text)

    def test_version(self) -> None:
        """It shows the version of pcapsvc, then that of Twisted, and exits with status 0."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            self.assertEqual(0, self.assertRaises(SystemExit, options, "--version").code)
        self.assertEqual(
            f"pcapsvc version: {pcapsvc.__version__}\nTwisted version: {twisted.__version__}\n",
            printed.getvalue(),
        )


class MakeServiceTests(unittest.TestCase):
    """From options to a service."""

    def setUp(self) -> None:
        """
        Making a service ignores SIGHUP, replaces the reactor's clock, and changes how fatal errors are
        printed.
        """
        self.patch(reactor, "seconds", reactor.seconds)
        self.addCleanup(signal.signal, signal.SIGHUP, signal.getsignal(signal.SIGHUP))
        self.addCleanup(setattr, sys, "excepthook", sys.excepthook)
        self.addCleanup(setattr, sys, "stdout", sys.stdout)
        self.patch(globalLogBeginner, "beginLoggingTo", globalLogBeginner.beginLoggingTo)

    def refused(self, make: Callable[..., IService], *arguments: Any) -> list[str]:
        """The lines that are printed if the service can't be made."""
        printed = io.StringIO()
        with contextlib.redirect_stderr(printed):
            self.assertEqual(1, self.assertRaises(SystemExit, make, *arguments).code)
        return printed.getvalue().splitlines()

    def test_a_service(self) -> None:
        """A valid configuration makes a service, which isn't started."""
        service = tap.makeService(options("--config", QUICK_START))
        self.assertTrue(IService.providedBy(service))
        self.assertFalse(service.running)

    def test_secrets(self) -> None:
        """From then on, the secrets of the configuration are hidden in the log."""
        self.addCleanup(of_process.hide, ())
        configuration = Path(self.mktemp()).absolute()
        configuration.write_text(
            Path(QUICK_START).read_text() + "\n[sqs]\naccessid = 'i'\naccesskey = 'hunter22'\n"
        )
        tap.makeService(options("--config", str(configuration)))
        self.assertEqual(of_process("hunter22"), "<secret>")

    def test_problems(self) -> None:
        """Each problem is a line on standard error, after a heading, and the process exits with status 1."""
        self.assertEqual(
            [
                "pcapsvc cannot start; the configuration has problems:",
                "  --maxpackets = 0: must be a whole number from 1 to 9223372036854775807",
                '  --csport = "x": must be a whole number from 1 to 65535',
            ],
            self.refused(
                tap.makeService, options("--config", QUICK_START, "--csport", "x", "--maxpackets", "0")
            ),
        )

    def test_what_only_twisted_refuses(self) -> None:
        """An endpoint that only Twisted rejects is a problem like the others."""
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        ours = Authority(directory).issue("http")
        chain = directory / "chain.pem"
        # Twisted looks for the certificates of a chain by their lines, as Unix ends them.
        chain.write_bytes(ours.certificate.read_bytes().replace(b"\n", b"\r\n"))
        files = f"privateKey={ours.key}:certKey={ours.certificate}:extraCertChain={chain}"
        listen = f"ssl:0:{files}:interface=127.0.0.1"
        configuration = directory / "pcapsvc.toml"
        configuration.write_text(
            f"[general]\nwritelocal = true\nlocaldir = '/'\n[http]\nlisten = '{listen}'\n"
        )
        heading, problem = self.refused(tap.makeService, options("--config", str(configuration)))
        self.assertEqual("pcapsvc cannot start; the configuration has problems:", heading)
        self.assertTrue(problem.startswith('  http.listen = "ssl:0:privateKey='), problem)
        self.assertIn("must be an endpoint that can be listened on (Specified chain file", problem)

    def test_flag_over_the_file(self) -> None:
        """A flag that is set to false overrides the file; any other value is a problem."""
        arguments = ("-config", QUICK_START, "-writelocal=false")
        self.assertEqual(
            [
                "  --writelocal: at least one destination must be enabled: general.writelocal, "
                "cloudshark.upload, s3.upload, puturl.allow, sftp.upload or webhook.upload"
            ],
            self.refused(tap.makeService, options(*arguments))[1:],
        )
        self.assertEqual(
            ['  --panic = "no": must be true or false'],
            self.refused(tap.makeService, options("-config", QUICK_START, "-panic=no"))[1:],
        )

    def test_from_the_environment(self) -> None:
        """An environment variable can name the configuration."""
        service = tap.service_from_environment({"PCAPSVC_CONFIG": QUICK_START})
        self.assertTrue(IService.providedBy(service))

    def test_no_environment(self) -> None:
        """If the variable is missing, that is the problem."""
        for environment in ({}, {"PCAPSVC_CONFIG": ""}):
            self.assertEqual(
                "  PCAPSVC_CONFIG: must be the path of the configuration",
                self.refused(tap.service_from_environment, environment)[1],
            )


class PluginTests(unittest.TestCase):
    """How C{twistd} finds the service."""

    def test_found(self) -> None:
        """There is one plugin of this name, with the options and the function that makes the service."""
        (found,) = [each for each in getPlugins(IServiceMaker) if each.tapname == "pcapsvc"]
        self.assertIs(tap.Options, found.options)
        self.assertIs(tap.makeService, found.makeService)

    def test_no_packages(self) -> None:
        """The plugin's directories aren't packages, which would hide Twisted itself."""
        for directory in (ROOT / "twisted", ROOT / "twisted" / "plugins"):
            self.assertFalse((directory / "__init__.py").exists())


class TwistdTests(unittest.TestCase):
    """The real C{twistd}, with a wrong configuration."""

    async def twistd(
        self, *arguments: str, opened: str = "", first: str = "", **environment: str
    ) -> tuple[str, str, int]:
        """
        Run it in an empty directory; what it printed, on both channels, and its status.

        @param first: what Python is to do first.
        @param opened: the name of a socket that systemd has passed to it.
        """
        sockets = f"LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', LISTEN_FDNAMES={opened!r}"
        told = f"import os; os.environ.update({sockets})"
        directory = Path(self.mktemp())
        directory.mkdir()
        out, err, status = await getProcessOutputAndValue(
            sys.executable,
            [
                "-c",
                f"{told if opened else ''}\n{first}\nfrom twisted.scripts.twistd import run; run()",
                *arguments,
            ],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), **environment},
            path=str(directory),
            reactor=reactor,
        )
        # A daemon reports its failure before it removes its pid file.
        deadline = time.monotonic() + 60
        while any(directory.iterdir()) and time.monotonic() < deadline:
            await deferLater(reactor, 0.01, lambda: None)
        self.assertEqual([], [each.name for each in directory.iterdir()])
        return out.decode(), err.decode(), status

    async def test_in_the_foreground(self) -> None:
        """In the foreground, the problems are printed without a traceback, and the status is 1."""
        out, err, status = await self.twistd("-n", "pcapsvc", "--csport", "x")
        self.assertEqual(("", 1), (out, status))
        self.assertTrue(err.startswith("pcapsvc cannot start"), err)
        self.assertIn('\n  --csport = "x": ', err)
        self.assertIn("\n  redis.listen: at least one source", err)
        self.assertNotIn("Traceback", err)

    async def test_as_the_original(self) -> None:
        """With one dash, twistd's options before the command and pcapsvc's after it are kept apart."""
        out, err, status = await self.twistd("-n", "pcapsvc", "-csport", "x", "-upload=maybe")
        self.assertEqual(("", 1), (out, status))
        self.assertIn('\n  --csport = "x": ', err)
        self.assertIn('\n  --upload = "maybe": must be true or false', err)

    async def test_as_a_daemon(self) -> None:
        """With a wrong configuration it exits before becoming a daemon, so the caller gets the status."""
        out, err, status = await self.twistd("pcapsvc", "--config", "/nowhere.toml")
        self.assertEqual(("", 1), (out, status))
        self.assertIn("\n  /nowhere.toml: must be a file that can be read", err)
        self.assertNotIn("Traceback", err)

    async def test_taken(self) -> None:
        """If the address is in use, the error is printed without a traceback, and the status is 1."""
        taken = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(taken.close)
        listen = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
        configuration = Path(self.mktemp()).absolute()
        configuration.write_text(
            f"[general]\nwritelocal = true\nlocaldir = '/'\n[http]\nlisten = '{listen}'\n"
        )
        for flags in (("-n",), ("--logfile", os.devnull)):
            out, err, status = await self.twistd(*flags, "pcapsvc", "--config", str(configuration))
            self.assertEqual(1, status)
            self.assertIn("http.listen = ", err)
            self.assertIn(listen, err)
            self.assertNotIn("Traceback", out + err)

    async def test_no_thread(self) -> None:
        """If no thread can be started, not even the log can be written: that is printed."""
        configuration = Path(self.mktemp()).absolute()
        configuration.write_text(
            "[general]\nwritelocal = true\nlocaldir = '/'\n[http]\nlisten = 'unix:http'\n"
        )
        _, err, status = await self.twistd(
            *("-n", "--pidfile=", "pcapsvc", "--config", str(configuration)),
            first="import threading; threading.stack_size(1 << 46)",
        )
        expected = "pcapsvc cannot start: the log can't be written: can't start new thread\n"
        self.assertEqual((expected, 1), (err, status))

    async def test_internal_error(self) -> None:
        """An error that nobody expected is printed, too."""
        configuration = Path(self.mktemp()).absolute()
        configuration.write_text(
            "[general]\nwritelocal = true\nlocaldir = '/'\n[http]\nlisten = 'unix:http'\n"
        )
        _, err, status = await self.twistd(
            *("-n", "--pidfile=", "pcapsvc", "--config", str(configuration)),
            first="from pcapsvc.host.background_log import BackgroundLogService as B; "
            "B.privilegedStartService = lambda self: 1 // 0",
        )
        self.assertEqual(1, status)
        self.assertIn("ZeroDivisionError", err)

    async def test_no_socket_of_systemd(self) -> None:
        """A socket that systemd didn't pass is a problem, reported with the others."""
        configuration = Path(self.mktemp()).absolute()
        configuration.write_text("[http]\nlisten = 'systemd:domain=UNIX:name=http'\n")
        arguments = ("-n", "pcapsvc", "--config", str(configuration))
        _, err, status = await self.twistd(*arguments)
        self.assertEqual(1, status)
        self.assertIn("must be a socket passed by systemd, but systemd passed none", err)
        self.assertIn("at least one destination", err)
        _, err, status = await self.twistd(*arguments, opened="http")
        self.assertEqual(1, status)
        self.assertNotIn("systemd", err)

    async def test_by_the_tac(self) -> None:
        """C{pcapsvc.tac} does the same."""
        for flags in ("-ny", "-y"):
            out, err, status = await self.twistd(
                flags, str(ROOT / "pcapsvc.tac"), PCAPSVC_CONFIG="/nowhere.toml"
            )
            self.assertEqual(("", 1), (out, status))
            self.assertIn("\n  /nowhere.toml: must be a file that can be read", err)
            self.assertNotIn("Traceback", err)
