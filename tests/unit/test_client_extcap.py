"""What Wireshark is told, and where it is told it."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from twisted.trial import unittest

from pcapsvc.client import extcap
from pcapsvc.client.api import NodeApi
from pcapsvc.client.installing import extcap_directory
from pcapsvc.client.main import main
from pcapsvc.client.status import NoAnswer


class ProtocolTests(unittest.SynchronousTestCase):
    """The calls that need no node."""

    def run_main(self, *words: str) -> tuple[int, list[str]]:
        """Run pcapctl: its status, and what it prints."""
        output = io.StringIO()
        self.patch(os, "environ", {**os.environ, "XDG_CONFIG_HOME": "/nonexistent"})
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(io.StringIO()):
            status = main(["extcap", *words])
        return status, output.getvalue().splitlines()

    def test_interfaces(self) -> None:
        """Without a configuration there is no interface, which isn't an error; nor is an unknown option."""
        status, lines = self.run_main("--extcap-interfaces", "--extcap-version=9.9", "--extcap-new=1")
        self.assertEqual((status, len(lines)), (0, 1))
        self.assertRegex(lines[0], r"^extcap \{version=\S+\}\{display=pcapctl\}$")

    def test_link_types(self) -> None:
        """The link type is Ethernet's, and that of C{any} is Linux's."""
        for interface, expected in (
            ("eth0", "dlt {number=1}{name=EN10MB}{display=Ethernet}"),
            ("any", "dlt {number=113}{name=LINUX_SLL}{display=Linux cooked-mode capture}"),
        ):
            value = f"pcapctl:lab:web-1:{interface}"
            self.assertEqual(self.run_main("--extcap-dlts", "--extcap-interface", value), (0, [expected]))

    def test_form(self) -> None:
        """The form has the filter, the past and the limits, each an option that the capture accepts."""
        status, lines = self.run_main("--extcap-config", "--extcap-interface", "pcapctl:lab:web-1:eth0")
        calls = [line.partition("{call=")[2].partition("}")[0] for line in lines]
        self.assertEqual(
            (status, calls),
            (0, ["--filter", "--before", "--packets", "--bytes", "--duration", "--snap"]),
        )
        for number, line in enumerate(lines):
            self.assertRegex(
                line,
                rf"^arg \{{number={number}\}}\{{call=--\w+\}}\{{display=[^{{}}]+\}}"
                r"\{type=(string|unsigned)\}\{tooltip=[^{}]+\}$",
            )

    def test_wrong(self) -> None:
        """What isn't listed can't be captured on."""
        for words in (
            ("--extcap-config", "--extcap-interface", "eth0"),
            ("--capture", "--extcap-interface", "pcapctl:none:web-1:eth0", "--fifo", "/tmp/none"),
            (),
        ):
            self.assertEqual(self.run_main(*words)[0], 2)


class ShapeTests(unittest.SynchronousTestCase):
    """Something that answers, but not as a node does."""

    def test_shapes(self) -> None:
        """It is reported, whatever it is, to whoever started Wireshark, or in its dialog."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        home = Path(self.mktemp()).absolute()
        home.mkdir()
        (home / "pcapctl.toml").write_text('[profiles.p]\napis = "http://a"\n')
        self.patch(os, "environ", {**os.environ, "XDG_CONFIG_HOME": str(home)})
        good = {"/node": {"name": "n"}, "/interfaces": {"interfaces": []}, "/captures": {"captures": []}}
        interface = ("--extcap-interface", "pcapctl:p:n:eth0")
        for words, path, wrong, status in (
            (("--extcap-interfaces",), "/node", [], 0),
            (("--extcap-interfaces",), "/interfaces", {"interfaces": 5}, 0),
            (("--extcap-interfaces",), "/interfaces", {"interfaces": [5]}, 0),
            (("--extcap-interfaces",), "/interfaces", {"interfaces": [{"up": True}]}, 0),
            (("--extcap-interfaces",), "/interfaces", {"interfaces": [{"up": True, "name": "\ud800"}]}, 0),
            (("--extcap-interfaces",), "/interfaces", {"interfaces": [{"up": True, "name": 5}]}, 0),
            ((*interface, "--capture", "--fifo", os.devnull), "/node", {"name": "n", "limits": 5}, 4),
            ((*interface, "--capture", "--fifo", os.devnull), "/captures", {"captures": []}, 4),
            ((*interface, "--capture", "--fifo", os.devnull), "/captures", {"captures": [5]}, 4),
            ((*interface, "--capture", "--fifo", os.devnull), "/captures", 5, 4),
            ((*interface, "--extcap-capture-filter", "ip"), "/filters", 5, 4),
            ((*interface, "--extcap-capture-filter", "ip"), "/filters", {"problems": [5]}, 4),
        ):
            answers: dict[str, Any] = {**good, path: wrong}
            self.patch(NodeApi, "call", lambda api, method, path, *_, answers=answers: answers[path])
            errors = io.StringIO()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
                self.assertEqual(main(["extcap", *words]), status, (words, wrong))
            self.assertEqual(errors.getvalue(), "pcapctl: http://a:80 does not answer as a node does\n")


class CaptureTests(unittest.SynchronousTestCase):
    """What Wireshark starts to capture, on a node that answers."""

    def setUp(self) -> None:
        """A profile with the node."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        self.home = Path(self.mktemp()).absolute()
        self.home.mkdir()
        (self.home / "pcapctl.toml").write_text('[profiles.p]\napis = "http://a"\n')
        self.patch(os, "environ", {**os.environ, "XDG_CONFIG_HOME": str(self.home)})
        self.asked: list[str] = []
        self.patch(NodeApi, "call", lambda api, *request: self.answer(*request))

    def answer(self, method: str, path: str, *_: Any) -> Any:
        """What the node answers to each request."""
        self.asked.append(f"{method} {path}")
        return {"name": "n", "captures": [{"id": "c"}]}

    def capture(self, fifo: str) -> int:
        """Capture as Wireshark does: the exit status."""
        return main(["extcap", "--extcap-interface", "pcapctl:p:n:eth0", "--capture", "--fifo", fifo])

    def test_regular_file(self) -> None:
        """A regular file in place of the FIFO is not overwritten, and nothing is captured."""
        path = self.home / "kept"
        path.write_text("kept")
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            self.assertEqual(self.capture(str(path)), 2)
        self.assertEqual(errors.getvalue(), f"pcapctl: {path} is a regular file, and is not replaced\n")
        self.assertEqual((self.asked, path.read_text()), (["GET /node"], "kept"))

    def test_patience(self) -> None:
        """A node that doesn't answer doesn't keep Wireshark waiting; that of the capture has its time."""
        asked: list[tuple[str, float]] = []

        def call(api: NodeApi, method: str, path: str, *_: Any) -> Any:
            asked.append((path, api.answer_seconds))
            return self.answer(method, path)

        self.patch(NodeApi, "call", call)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            main(["extcap", "--extcap-interfaces"])
        self.assertEqual(asked, [("/node", 3.0), ("/interfaces", 3.0)])
        asked.clear()
        self.patch(extcap, "copy_packets", lambda *_: None)
        self.capture(os.devnull)
        patience = [("/node", 3.0), ("/node", 30.0), ("/captures", 30.0), ("/captures/c", 30.0)]
        self.assertEqual(asked, patience)

    def test_hang_up(self) -> None:
        """If the terminal of Wireshark is closed, the capture ends, as it does when Wireshark ends it."""
        # Otherwise it ends the tests, if it isn't handled.
        signal.signal(signal.SIGHUP, signal.default_int_handler)

        def hang_up(*_: Any, **__: Any) -> Any:
            os.kill(os.getpid(), signal.SIGHUP)
            raise NoAnswer("nobody has hung up")

        self.patch(NodeApi, "open", hang_up)
        self.assertEqual(self.capture(os.devnull), 0)
        self.assertEqual(self.asked[-1], "DELETE /captures/c")

    def test_requested(self) -> None:
        """If Wireshark ends the program before the node has answered, the capture ends as well."""
        # Otherwise it ends the tests, if it isn't handled.
        signal.signal(signal.SIGTERM, signal.default_int_handler)

        def call(api: NodeApi, method: str, path: str, *_: Any) -> Any:
            if method == "POST":
                signal.raise_signal(signal.SIGTERM)
            return self.answer(method, path)

        self.patch(NodeApi, "call", call)
        self.assertEqual(self.capture(os.devnull), 0)
        self.assertEqual(self.asked[-2:], ["POST /captures", "DELETE /captures/c"])


class InstallationTests(unittest.SynchronousTestCase):
    """C{install-extcap}."""

    def test_directory(self) -> None:
        """It is that of the version of Wireshark, or the one that the environment names."""
        home = {"HOME": "/h"}
        for environment, version, expected in (
            (home, (4, 0), "/h/.config/wireshark/extcap"),
            ({**home, "XDG_CONFIG_HOME": "/x"}, (3, 6), "/x/wireshark/extcap"),
            ({**home, "XDG_CONFIG_HOME": "/x"}, (4, 2), "/h/.local/lib/wireshark/extcap"),
            (home, None, "/h/.local/lib/wireshark/extcap"),
            ({**home, "WIRESHARK_EXTCAP_DIR": "/e"}, (4, 2), "/e"),
        ):
            self.assertEqual(str(extcap_directory(environment, version)), expected)

    def test_safely(self) -> None:
        """Nothing else in the directory is written to, or left there."""
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        other = directory / "other"
        other.write_text("other")
        (directory / ".pcapctl.part").symlink_to(other)
        with contextlib.redirect_stdout(io.StringIO()):
            self.assertEqual(main(["install-extcap", "--dir", str(directory)]), 0)
        self.assertEqual(other.read_text(), "other")
        (directory / "pcapctl").unlink()
        (directory / "pcapctl").mkdir()
        with contextlib.redirect_stderr(io.StringIO()):
            self.assertEqual(main(["install-extcap", "--dir", str(directory)]), 2)
        self.assertEqual(sorted(os.listdir(directory)), [".pcapctl.part", "other", "pcapctl"])

    def test_installed(self) -> None:
        """What is installed runs by itself, from anywhere."""
        place = Path(self.mktemp()).absolute()
        place.mkdir()
        # Its environment is wherever the user has put it.
        for number, name in enumerate(("python", "it's a name", "long" * 50)):
            python = place / name
            python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
            python.chmod(0o755)
            self.patch(sys, "executable", str(python))
            directory = place / str(number)
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                self.assertEqual(main(["install-extcap", "--dir", str(directory)]), 0)
            program = output.getvalue().strip()
            self.assertEqual((program, os.listdir(directory)), (str(directory / "pcapctl"), ["pcapctl"]))
            done = subprocess.run(
                [program, "--extcap-interfaces"],
                cwd="/",
                env={"XDG_CONFIG_HOME": "/nonexistent"},
                capture_output=True,
                check=True,
            )
            self.assertTrue(done.stdout.startswith(b"extcap {version="))

    def test_first_line(self) -> None:
        """It is run without a shell, if its interpreter can be."""
        self.patch(sys, "executable", "/usr/bin/python3")
        directory = Path(self.mktemp()).absolute()
        with contextlib.redirect_stdout(io.StringIO()):
            main(["install-extcap", "--dir", str(directory)])
        self.assertTrue((directory / "pcapctl").read_text().startswith("#!/usr/bin/python3\nimport sys\n"))
