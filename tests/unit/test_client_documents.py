"""The completion of pcapctl in real shells, and its man page."""

from __future__ import annotations

import datetime
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

from twisted.trial import unittest

from pcapsvc.client.completion import PATHS, completion_script
from pcapsvc.client.main import SHELLS
from pcapsvc.client.manual import manual_page
from pcapsvc.client.status import ExitStatus
from peers.requirement import require_command
from peers.terminal import Terminal
from tests.unit.documents import ROOT

# What is typed, and what it may be completed to.
_CASES = (
    (("cap",), {"capture"}),
    (("capture", "--no"), {"--node", "--nodere", "--no-progress"}),
    (("capture", "-i", "eth0", "--merg"), {"--merge"}),
    (("list", "--state", "d"), {"delivering", "done"}),
    (("list", "--profile", ""), {"prod", "lab"}),
    (("capture", "-w", "pac"), {"packets.pcap"}),
    (("completion", ""), {"bash", "zsh", "fish"}),
    (("capture", "--protocol", "icm"), {"icmp", "icmp6"}),
    (("capture", "--format", "pcapn"), {"pcapng"}),
    (("watch", "--type", "capture.f"), {"capture.failed", "capture.file"}),
    (("watch", "--type", "req"), {"request", "request.accepted", "request.busy", "request.rejected"}),
)
_BASH = """\
. {script}
command=$(complete -p pcapctl | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
COMP_WORDS=(pcapctl "$@")
COMP_CWORD=$#
$command pcapctl "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD-1]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


# What the build does, if no other packages are installed than those that are named.
_BUILD = """
import datetime, sys
from importlib.metadata import packages_distributions

for module, packages in packages_distributions().items():
    if not {*sys.argv[1:]}.intersection(packages):
        sys.modules.setdefault(module, None)
from pcapsvc.client.completion import PATHS, completion_script
from pcapsvc.client.manual import manual_page

print(manual_page(datetime.date(2001, 2, 3)), *map(completion_script, PATHS))
"""


class BuildTests(unittest.SynchronousTestCase):
    """They are made when the package is built."""

    def test_requirements(self) -> None:
        """That needs no other packages than those that are installed then."""
        requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
        packages = [re.match(r"[\w-]+", each)[0] for each in requires]  # type: ignore[index]
        done = subprocess.run(
            [sys.executable, "-c", _BUILD, "pcapsvc", *packages],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))


class EncodingTests(unittest.SynchronousTestCase):
    """A terminal whose encoding isn't UTF-8."""

    def run_in_ascii(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        """Run pcapctl. Otherwise Python uses UTF-8 in the locale C (PEP 538, PEP 540)."""
        return subprocess.run(
            [sys.executable, "-m", "pcapsvc.client", *words],
            env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
            capture_output=True,
            timeout=60,
            check=False,
        )

    def test_help(self) -> None:
        """The help is printed as far as the terminal has its characters."""
        done = self.run_in_ascii("capture", "--help")
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertIn(b"--nodere", done.stdout)

    def test_completion(self) -> None:
        """So are the scripts for shells, if they are installed."""
        done = self.run_in_ascii("completion", "fish")
        self.assertIn((done.returncode, b"Traceback" in done.stderr), [(0, False), (ExitStatus.USAGE, False)])


class CompletionTests(unittest.SynchronousTestCase):
    """A directory with the scripts, a configuration, and pcapctl in the path."""

    def setUp(self) -> None:
        """Make them."""
        self.directory = Path(self.mktemp()).absolute()
        for shell, path in PATHS.items():
            script = self.directory / path
            script.parent.mkdir(parents=True)
            script.write_text(completion_script(shell))
        (self.directory / "packets.pcap").touch()
        (self.directory / "pcapctl.toml").write_text("[profiles.prod]\n[profiles.lab]\n")
        programs = self.directory / "bin"
        programs.mkdir()
        program = programs / "pcapctl"
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m pcapsvc.client "$@"\n')
        program.chmod(0o755)
        self.environment = {
            "PATH": f"{programs}:{os.environ.get('PATH', os.defpath)}",
            "PYTHONPATH": os.pathsep.join(sys.path),
            "HOME": str(self.directory),
            "XDG_CONFIG_HOME": str(self.directory),
            "LANG": "C.UTF-8",
        }

    def run_shell(self, *command: str) -> str:
        """Run a shell. What it prints."""
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout

    def test_bash(self) -> None:
        """In bash, commands, options, values, files and profiles are completed."""
        bash = require_command("bash", "bash")
        for words, expected in _CASES:
            script = _BASH.format(script=self.directory / PATHS["bash"])
            printed = self.run_shell(bash, "--norc", "-c", script, "bash", *words)
            self.assertEqual(set(printed.splitlines()), expected, words)

    def test_odd_profiles(self) -> None:
        """
        The name of a profile is completed as it is to be typed, in bash and fish, and nothing in it is run.
        """
        names = ("$(touch ran)", "`touch ran`", "two words", "it's", "*")
        profiles = "".join(f'[profiles."{name}"]\n' for name in names)
        (self.directory / "pcapctl.toml").write_text(profiles)
        bash, fish = require_command("bash", "bash"), require_command("fish", "fish")
        script = _BASH.format(script=self.directory / PATHS["bash"])
        for typed, expected in (("", set(names)), ("tw", {"two words"}), ("two\\ w", {"two words"})):
            printed = self.run_shell(bash, "--norc", "-c", script, "bash", "list", "--profile", typed)
            self.assertEqual({each for line in printed.splitlines() for each in shlex.split(line)}, expected)
        path = f"set fish_complete_path {shlex.quote(str((self.directory / PATHS['fish']).parent))}"
        printed = self.run_shell(fish, "-c", f"{path}; complete -C 'pcapctl list --profile '")
        self.assertEqual({line.partition("\t")[0] for line in printed.splitlines()}, set(names))
        self.assertFalse((self.directory / "ran").exists())

    def test_fish(self) -> None:
        """In fish as well."""
        fish = require_command("fish", "fish")
        scripts = (self.directory / PATHS["fish"]).parent
        for words, expected in _CASES:
            path = f"set fish_complete_path {shlex.quote(str(scripts))} $fish_complete_path"
            line = shlex.join(["pcapctl", *words[:-1]])
            printed = self.run_shell(fish, "-c", f"{path}; complete -C {shlex.quote(f'{line} {words[-1]}')}")
            found = {each.partition("\t")[0] for each in printed.splitlines()}
            self.assertEqual(found, expected, words)

    def test_zsh(self) -> None:
        """In zsh as well, where somebody must press a key to see it."""
        zsh = require_command("zsh", "zsh")
        scripts = (self.directory / PATHS["zsh"]).parent
        # The first shell writes down what it finds in hundreds of files, as it does for users.
        dump = shlex.quote(str(self.directory / "zcompdump"))
        (self.directory / ".zshrc").write_text(
            f"PS1='> '\nfpath=({shlex.quote(str(scripts))} $fpath)\n"
            f"autoload -U compinit\ncompinit -u -d {dump}\n"
            'function result { print -r -- "result: $*." }\n'
        )
        for words, expected in _CASES:
            environment = {**self.environment, "ZDOTDIR": str(self.directory)}
            terminal = Terminal([zsh, "-i"], environment=environment, directory=self.directory)
            self.addCleanup(terminal.close)
            terminal.shows("> ")
            terminal.type(f"pcapctl {shlex.join(words[:-1])} {words[-1]}\t\t")
            if len(expected) > 1:
                # The list.
                for each in expected:
                    terminal.shows(re.escape(each))
            else:
                # To the beginning of the line.
                terminal.type("\x01result \n")
                terminal.shows(re.escape(" ".join(["result: pcapctl", *words[:-1], *expected]) + "."))

    def test_shells(self) -> None:
        """There is a script for each shell that the option names."""
        self.assertEqual(set(PATHS), set(SHELLS))


class ManualTests(unittest.SynchronousTestCase):
    """The man page."""

    def setUp(self) -> None:
        """Make it."""
        self.page = Path(self.mktemp()).absolute()
        self.page.write_text(manual_page(datetime.date(2026, 2, 3)))

    def shown(self, *command: str) -> str:
        """What a program makes of it, without a complaint."""
        done = subprocess.run(
            [*command, str(self.page)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "MANWIDTH": "100"},
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
        return done.stdout

    def test_valid(self) -> None:
        """mandoc finds nothing wrong with it, except for a long line in an example."""
        complaints = self.shown(require_command("mandoc", "mandoc"), "-T", "lint", "-W", "warning")
        self.assertEqual(complaints, "")

    def test_complete(self) -> None:
        """It describes each option of each command, and each exit status."""
        shown = self.shown(require_command("mandoc", "mandoc"), "-T", "ascii")
        text = re.sub(".\b", "", shown)
        found = re.findall(r"(?m)^_shtab_pcapctl_(\w+)_option_strings=\((.*)\)", completion_script("bash"))
        self.assertGreater(len(found), 10)
        # Wireshark knows those of extcap.
        options = {each for command, options in found if command != "extcap" for each in options.split()}
        options -= {"-h", "--help"}
        missing = {each for each in options if not re.search(rf"(?<![\w-]){each}\b", text)}
        self.assertEqual(missing, set())
        described = re.findall(r"(?m)^ +(\d+) {2,}[A-Z]", text)
        self.assertEqual(described, [str(int(status)) for status in ExitStatus])

    def test_sentences(self) -> None:
        """What is said of an option is a sentence, and abbreviations in it stay as they are."""
        page = manual_page(datetime.date(2026, 1, 2))
        described = re.findall(r"(?m)^\.TP\n.*\n(.*)", page)
        self.assertGreater(len(described), 40)
        self.assertEqual([words for words in described if re.match(r"[a-z]+[ ,]", words)], [])
        self.assertIn("TCP with this flag.", described)
        self.assertIn("Repeat an option to give several values", page)
