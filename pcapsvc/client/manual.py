"""
The man page C{pcapctl(1)}, made from the parser of the command line when the package is built.

It is written in the macros of man(7). The groups and options of a parser have no public names in argparse:
whatever makes documentation from a parser reads the same private ones.
"""

from __future__ import annotations

import argparse
import datetime
import textwrap
from collections.abc import Iterable, Iterator

from pcapsvc import __version__
from pcapsvc.client.main import EXIT_STATUSES, parser

# These groups are the same for every command that has them.
_SHARED = ("connection", "nodes")
_ENVIRONMENT = (
    ("PCAPCTL_PROFILE", "The profile, if --profile is not given."),
    ("PCAPCTL_TOKEN", "The token for the HTTP APIs, if --tokenfile is not given."),
    ("PCAPCTL_PASSWORD", "The password for Redis or Kafka, if --passwordfile is not given."),
    ("PCAPCTL_PUTURL", "The URL that the nodes put captures to, if neither option gives it."),
    ("NO_COLOR", "If it is not empty, the table has no colours."),
    ("TERM", "If it is 'dumb', there is a line for each event instead of the table."),
    ("WIRESHARK_EXTCAP_DIR", "Where install-extcap installs, if --dir is not given."),
)
_ABOUT = (
    "Options of capture are named as in tcpdump(1) if tcpdump has them. The BPF filter comes last. The"
    " documentation of pcapsvc describes each command in full."
)
_FILES = (("~/.config/pcapctl.toml", "The profiles. With XDG_CONFIG_HOME, it is in that directory."),)
_EXAMPLES = (
    (
        "Twenty packets from any interface of one node, and the outcome:",
        "pcapctl capture --via http://web-1:8480 -i any -c 20 --wait",
    ),
    (
        "From each node of a fleet into one file, in the order of time:",
        "pcapctl capture --via redis://redis.example.org --nodere '^web-' -i eth0 -c 5000 -w all.pcap --merge"
        " tcp port 443",
    ),
    (
        "The packets of one node as they arrive:",
        "pcapctl capture --via http://web-1:8480 -i eth0 -w - | wireshark -k -i -",
    ),
)


def manual_page(date: datetime.date) -> str:
    """The source of the man page. C{date} is shown in its last line."""
    top = parser()
    commands = _commands(top)
    lines = [
        f'.TH PCAPCTL 1 "{date.isoformat()}" "pcapsvc {__version__}" "User Commands"',
        *(".SH NAME", rf"pcapctl \- {_text(_begin(top.description or ''))}"),
        *(".SH SYNOPSIS", r"\fBpcapctl\fR \fICOMMAND\fR [\fIoptions\fR]"),
        *(".SH DESCRIPTION", _paragraph(f"{top.description} {_ABOUT}")),
        ".SH COMMANDS",
    ]
    shared: dict[str, dict[str, argparse.Action]] = {name: {} for name in _SHARED}
    for command in commands:
        lines += _command(command, shared)
    for name, actions in shared.items():
        lines += [f".SH {name.upper()}", *_options(actions.values())]
    lines += [
        ".SH EXIT STATUS",
        *_list((str(status), _sentence(words)) for status, words in EXIT_STATUSES.items()),
    ]
    lines += [".SH ENVIRONMENT", *_list(_ENVIRONMENT), ".SH FILES", *_list(_FILES), ".SH EXAMPLES"]
    for words, example in _EXAMPLES:
        lines += [_paragraph(words), ".PP", ".RS 4", ".nf", _text(example), ".fi", ".RE", ".PP"]
    del lines[-1]
    lines += [".SH SEE ALSO", r"\fBpcap\-filter\fR(7), \fBtcpdump\fR(1), \fBextcap\fR(4)"]
    return "\n".join(lines) + "\n"


def _commands(top: argparse.ArgumentParser) -> Iterable[argparse.ArgumentParser]:
    (commands,) = (action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    return commands.choices.values()


def _command(
    command: argparse.ArgumentParser, shared: dict[str, dict[str, argparse.Action]]
) -> Iterator[str]:
    """A section about a command. What is in a shared group is added to C{shared}."""
    positional = [_value(action) for action in command._get_positional_actions()]
    yield f'.SS "{_text(" ".join([command.prog, "[options]", *positional]))}"'
    yield _paragraph(command.description or "")
    also = []
    for group in command._action_groups:
        title = group.title or ""
        # The title of the section has the arguments already.
        actions = [action for action in group._group_actions if action.help and action.dest != "help"]
        if title in shared:
            also += [title] if actions else []
            shared[title] |= {action.dest: action for action in actions}
            continue
        if group.description:
            yield from (".PP", _paragraph(group.description))
        yield from _options(actions)
    if also:
        yield from (".PP", f"It also has the options of {_text(' and '.join(also))} below.")


def _options(actions: Iterable[argparse.Action]) -> Iterator[str]:
    for action in actions:
        value = _value(action)
        names = [rf"\fB{_text(name)}\fR" for name in action.option_strings]
        if not names:
            title = rf"\fI{_text(value)}\fR"
        else:
            title = ", ".join(names) + (rf" \fI{_text(value)}\fR" if value else "")
        yield from (".TP", title, _paragraph(_sentence((action.help or "") % {"prog": "pcapctl"})))


def _value(action: argparse.Action) -> str:
    """What stands for the value of an option or argument; empty if it has none."""
    if action.nargs == 0:
        return ""
    choices = "|".join(map(str, action.choices)) if action.choices else ""
    name = str(action.metavar or choices or action.dest.upper())
    return {"*": f"[{name} ...]", "?": f"[{name}]"}.get(str(action.nargs), name)


def _list(items: Iterable[tuple[str, str]]) -> Iterator[str]:
    for name, words in items:
        yield from (".TP", rf"\fB{_text(name)}\fR", _paragraph(words))


def _begin(sentence: str) -> str:
    """A sentence, as what is named."""
    return sentence[:1].lower() + sentence[1:].rstrip(".")


def _sentence(words: str) -> str:
    """What stands beside an option, as a sentence."""
    first = words.partition(" ")[0]
    return f"{first[:1].upper() if first.strip(',').isalpha() else first[:1]}{words[1:]}."


def _paragraph(text: str) -> str:
    """A paragraph, in lines that are not long."""
    return "\n".join(map(_text, textwrap.wrap(text, 76, break_long_words=False, break_on_hyphens=False)))


def _text(text: str) -> str:
    """A text, so that nothing in it is a request or an escape sequence of roff."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq")
    return rf"\&{escaped}" if escaped.startswith(".") else escaped
