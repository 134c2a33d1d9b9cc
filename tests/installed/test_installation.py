"""The package as it is installed: its modules, its metadata, and the plugin that twistd finds."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import pcapsvc
from pcapsvc.client.main import SHELLS


class InstallationTests(SynchronousTestCase):
    """Everything runs from an empty directory, so that only what is installed is found."""

    def run_in_empty_directory(self, program: str, *arguments: str) -> str:
        """Run a program of the environment. What it printed."""
        empty = Path(self.mktemp())
        empty.mkdir()
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [str(Path(sys.executable).with_name(program)), *arguments],
            cwd=empty,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=100,
        )
        self.assertEqual(done.returncode, 0, done.stdout)
        return done.stdout

    def test_modules(self) -> None:
        """Every module can be imported."""
        names = [one.name for one in pkgutil.walk_packages(pcapsvc.__path__, "pcapsvc.")]
        self.assertGreater(len(names), 50)
        imports = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
        self.assertEqual(self.run_in_empty_directory("python", "-c", imports, *names), "")

    def test_plugin(self) -> None:
        """C{twistd} lists pcapsvc among its commands."""
        self.assertRegex(self.run_in_empty_directory("twistd", "--help"), r"(?m)^ +pcapsvc ")

    def test_options(self) -> None:
        """C{twistd pcapsvc} knows its options."""
        self.assertIn("--config", self.run_in_empty_directory("twistd", "pcapsvc", "--help"))

    def test_client(self) -> None:
        """C{pcapctl} is a program of its own."""
        self.assertIn("capture", self.run_in_empty_directory("pcapctl", "--help"))

    def test_completion(self) -> None:
        """C{pcapctl} prints the completion script that is installed for each shell."""
        for shell in SHELLS:
            self.assertIn("--via", self.run_in_empty_directory("pcapctl", "completion", shell))

    def test_manual(self) -> None:
        """The man page is where C{man} finds it, beside the programs."""
        prefix = Path(sys.executable).parents[1]
        self.assertIn("pcapctl", (prefix / "share" / "man" / "man1" / "pcapctl.1").read_text())

    def test_version(self) -> None:
        """The version in the metadata is the package's."""
        self.assertEqual(version("pcapsvc"), pcapsvc.__version__)
