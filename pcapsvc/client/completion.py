"""The completion of pcapctl's command line in shells: made when the package is built, and printed."""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from argparse import Namespace

from pcapsvc.client.main import parser
from pcapsvc.client.status import ClientError, ExitStatus

#: Where shells look for it below C{/usr}, C{/usr/local} and C{~/.local}.
PATHS = {
    "bash": "share/bash-completion/completions/pcapctl",
    "zsh": "share/zsh/site-functions/_pcapctl",
    "fish": "share/fish/vendor_completions.d/pcapctl.fish",
}
# What completes the name of a profile, when it is asked for.
_LIST = "pcapctl profiles 2>/dev/null"
_PROFILES: dict[str, str | dict[str, str]] = {
    "bash": "_pcapctl_profiles",
    "zsh": "_pcapctl_profiles",
    "fish": f"({_LIST})",
    "preamble": {
        "bash": f'_pcapctl_profiles() {{ compgen -W "$({_LIST})" -- "$1"; }}\n',
        "zsh": f'_pcapctl_profiles() {{ compadd -- ${{(f)"$({_LIST})"}} }}\n',
    },
}


def completion_script(shell: str) -> str:
    """
    The script for a shell.

    @param shell: one of L{PATHS}.
    """
    # Not there when pcapctl runs.
    import shtab

    top = parser()
    for action in _actions(top):
        complete: dict[str, str | dict[str, str]] | None = None
        if action.metavar == "FILE":
            complete = shtab.FILE
        elif action.metavar == "DIRECTORY":
            complete = shtab.DIRECTORY
        elif "--profile" in action.option_strings:
            complete = _PROFILES
        if complete is not None:
            action.complete = complete  # type: ignore[attr-defined]
    return str(shtab.complete(top, shell, root_prefix="pcapctl"))


def completion(options: Namespace) -> ExitStatus:
    """Run the command: print the script that is installed."""
    files = importlib.metadata.files("pcapsvc") or ()
    for file in files:
        if file.as_posix().endswith(PATHS[options.shell]):
            sys.stdout.write(file.locate().read_text())  # type: ignore[attr-defined]
            return ExitStatus.DELIVERED
    raise ClientError("the script is not part of this installation")


def _actions(top: argparse.ArgumentParser) -> list[argparse.Action]:
    found = []
    for action in top._actions:
        found.append(action)
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                found += _actions(command)
    return found
