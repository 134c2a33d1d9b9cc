"""The completion of pcapctl's command line in shells: made when the package is built, and printed."""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping

from pcapsvc.client.main import parser
from pcapsvc.client.status import ClientError, ExitStatus
from pcapsvc.core.condition_values import PROTOCOLS
from pcapsvc.core.event import Payload

#: Where shells look for it below C{/usr}, C{/usr/local} and C{~/.local}.
PATHS = {
    "bash": "share/bash-completion/completions/pcapctl",
    "zsh": "share/zsh/site-functions/_pcapctl",
    "fish": "share/fish/vendor_completions.d/pcapctl.fish",
}
# What completes the name of a profile, when it is asked for.
_LIST = "pcapctl profiles 2>/dev/null"
# Not C{compgen -W}: it runs commands that a name contains. A name is inserted with what must be quoted in it
# quoted, and may have been begun with that or without.
_BASH_PROFILES = f"""\
_pcapctl_profiles() {{
  local name quoted
  while IFS= read -r name; do
    printf -v quoted %q "$name"
    [[ $name == "$1"* || $quoted == "$1"* ]] && printf '%s\\n' "$quoted"
  done < <({_LIST})
}}
"""
# What completes an option: by shell, and the functions that this needs.
_Completer = dict[str, str | dict[str, str]]
_PROFILES: _Completer = {
    "bash": "_pcapctl_profiles",
    "zsh": "_pcapctl_profiles",
    "fish": f"({_LIST})",
    "preamble": {
        "bash": _BASH_PROFILES,
        "zsh": f'_pcapctl_profiles() {{ compadd -- ${{(f)"$({_LIST})"}} }}\n',
    },
}


def _words(name: str, words: Iterable[str]) -> _Completer:
    """What completes an option that may have other values than these, too."""
    several = " ".join(words)
    return {
        "bash": f"_pcapctl_{name}",
        "zsh": f"({several})",
        "fish": several,
        "preamble": {"bash": f'_pcapctl_{name}() {{ compgen -W "{several}" -- "$1"; }}\n'},
    }


def _event_types() -> Iterator[str]:
    """The types of events, and what each type begins with."""
    for kind in sorted(payload.type.removeprefix("pcapsvc.") for payload in Payload.__subclasses__()):
        yield from (kind.partition(".")[0], kind)


_BY_OPTION: Mapping[str, _Completer] = {
    "--profile": _PROFILES,
    "--protocol": _words("protocols", PROTOCOLS),
    "--format": _words("formats", ("pcap", "pcapng")),
    "--type": _words("types", dict.fromkeys(_event_types())),
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
        complete: _Completer | None = None
        if action.metavar == "FILE":
            complete = shtab.FILE
        elif action.metavar == "DIRECTORY":
            complete = shtab.DIRECTORY
        elif action.option_strings:
            complete = _BY_OPTION.get(action.option_strings[-1])
        if complete is not None:
            action.complete = complete  # type: ignore[attr-defined]
    return str(shtab.complete(top, shell, root_prefix="pcapctl"))


def completion(options: Namespace) -> ExitStatus:
    """Run the command: print the script that is installed."""
    files = importlib.metadata.files("pcapsvc") or ()
    for file in files:
        if file.as_posix().endswith(PATHS[options.shell]):
            sys.stdout.write(file.locate().read_text("utf-8"))  # type: ignore[attr-defined]
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
