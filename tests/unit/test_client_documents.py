"""The completion of pcapctl in real shells, and its man page."""

from __future__ import annotations

import datetime
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from twisted.trial import unittest

from pcapsvc.client.completion import PATHS, completion_script
from pcapsvc.client.main import SHELLS
from pcapsvc.client.manual import manual_page
from pcapsvc.client.status import ExitStatus
from peers.requirement import require_command
from peers.terminal import Terminal

# What is typed, and what it may be completed to.
_CASES = (
    (("cap",), {"capture"}),
    (("capture", "--no"), {"--node", "--nodere", "--no-progress"}),
    (("capture", "-i", "eth0", "--merg"), {"--merge"}),
    (("list", "--state", "d"), {"delivering", "done"}),
    (("list", "--profile", ""), {"prod", "lab"}),
    (("capture", "-w", "pac"), {"packets.pcap"}),
    (("completion", ""), {"bash", "zsh", "fish"}),
)
_BASH = """\
. {script}
command=$(complete -p pcapctl | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
COMP_WORDS=(pcapctl "$@")
COMP_CWORD=$#
$command pcapctl "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD-1]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


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
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m pcapsvc.client.main "$@"\n')
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
        (self.directory / ".zshrc").write_text(
            f"PS1='> '\nfpath=({shlex.quote(str(scripts))} $fpath)\n"
            'autoload -U compinit\ncompinit -u -D\nfunction result { print -r -- "result: $*." }\n'
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
