"""What Wireshark is told, and where it is told it."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

from twisted.trial import unittest

from pcapsvc.client.installing import extcap_directory
from pcapsvc.client.main import main


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

    def test_installed(self) -> None:
        """What is installed runs by itself, from anywhere."""
        directory = Path(self.mktemp()).absolute() / "new"
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
        self.assertTrue(Path(program).read_text().startswith(f"#!{sys.executable}\n"))
