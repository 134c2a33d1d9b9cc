"""
The command C{pcapctl}.

Here are only the options: what a command does is imported when it runs, so that C{--help} is there at once.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from pcapsvc import __version__

#: The exit statuses, in words.
EXIT_STATUSES = {
    0: "everything is delivered, or the command has done its work",
    1: "some of it is not",
    2: "wrong usage, configuration or request",
    3: "every node has refused",
    4: "nobody answers",
    130: "interrupted",
}
#: The shells whose completion is part of the package.
SHELLS = ("bash", "zsh", "fish")
_STATUSES = "\n".join(f"  {status:<3}  {words}" for status, words in EXIT_STATUSES.items())
_EPILOG = f"""\
exit status:
{_STATUSES}

The configuration is ~/.config/pcapctl.toml. Secrets come from files, or from PCAPCTL_TOKEN (HTTP),
PCAPCTL_PASSWORD (Redis, Kafka) and PCAPCTL_PUTURL. See docs/pcapctl.md.
"""
#: What C{--compress} may be. The core's own list would take 50 ms to import.
COMPRESSIONS = ("gzip", "zstd", "none")
_VIA = (
    "redis(s)://HOST[:PORT][/CHANNEL], kafka(s)://HOST:PORT[/TOPIC], sqs:QUEUE-URL, http(s)://HOST[:PORT] or"
    " unix:/PATH (repeatable)"
)
#: What C{--flags} and C{--direction} may be; likewise.
FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr")
DIRECTIONS = ("in", "out")
_SEVERAL = "; to give several values, repeat the option"


class _Parser(argparse.ArgumentParser):
    """Its options can't be abbreviated: an abbreviation may mean another option in a later version."""

    def __init__(self, **settings: object) -> None:
        settings |= {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(**settings)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, in one line, and where the options are described."""
        self.exit(2, f"{self.prog}: {message}\nTry '{self.prog} --help'.\n")


class _Once(argparse.Action):
    """An option that selects. Of two values, one would be ignored, and others like it may be repeated."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        options: argparse.Namespace,
        value: Any,
        name: str | None = None,
    ) -> None:
        if getattr(options, self.dest) is not None:
            raise argparse.ArgumentError(self, "can't be repeated")
        setattr(options, self.dest, value)


def parser() -> argparse.ArgumentParser:
    """The parser of the command line. C{run} is what a command does: a module and a function."""
    top = _Parser(
        prog="pcapctl", description="Capture packets on a fleet of hosts that run pcapsvc.", epilog=_EPILOG
    )
    top.add_argument("--version", action="version", version=f"pcapctl {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True, title="commands")

    def add(name: str, run: str, words: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=words, description=f"{words[:1].upper()}{words[1:]}.")
        command.set_defaults(run=run)
        return command

    _capture(add("capture", "requesting:capture", "request captures, and see what becomes of them"))
    _nodes(add)
    _checks(add)
    _extcap(add)
    _shell(add)
    return top


def _connection(command: argparse.ArgumentParser, *, via: bool = True, reports: bool = False) -> None:
    group = command.add_argument_group("connection")
    group.add_argument("--profile", type=_text, metavar="NAME", help="the profile in pcapctl.toml")
    if via:
        group.add_argument("--via", action="append", metavar="URL", help=_VIA)
    if reports:
        group.add_argument(
            "--reports", action="append", metavar="URL", help="where events come from, if not beside --via"
        )
    group.add_argument("--api", action="append", metavar="URL", help="the HTTP API of a node (repeatable)")
    group.add_argument(
        "--tokenfile", dest="token_file", type=_text, metavar="FILE", help="the token for HTTP"
    )
    group.add_argument(
        "--passwordfile",
        dest="password_file",
        type=_text,
        metavar="FILE",
        help="the password for Redis or Kafka",
    )
    group.add_argument(
        "--cafile", dest="ca_file", type=_text, metavar="FILE", help="the certificates to trust (PEM)"
    )


def _address(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("nodes")
    group.add_argument("--node", type=_text, action=_Once, metavar="NAME", help="the node of this name")
    group.add_argument(
        "--nodere", type=_text, action=_Once, metavar="RE", help="the nodes whose names match (RE2)"
    )
    group.add_argument("--all", action="store_true", help="every node")


def _capture(command: argparse.ArgumentParser) -> None:
    _connection(command, reports=True)
    _address(command)
    _which_packets(command)
    what = command.add_argument_group("what to capture")
    what.add_argument(
        "-i", "--interface", action="append", metavar="NAME", help="an interface, or 'any' (repeatable)"
    )
    what.add_argument(
        "--alias", action="append", metavar="NAME", help="interfaces by their alias (repeatable)"
    )
    what.add_argument("-c", "--packets", type=_whole, metavar="N", help="end after this many packets")
    what.add_argument("--bytes", type=_whole, metavar="N", help="end at this size of the file, in bytes")
    what.add_argument(
        "--timeout", type=_whole, metavar="S", help="end after this many seconds without a packet"
    )
    what.add_argument("--duration", type=_whole, metavar="S", help="end after this many seconds")
    what.add_argument("-s", "--snap", type=_whole, metavar="N", help="keep this many bytes of each packet")
    what.add_argument(
        "--before", type=_whole, metavar="S", help="begin with the packets of the last S seconds"
    )
    what.add_argument("--pastonly", action="store_true", help="with --before: only those")
    what.add_argument(
        "--beforeoptional", action="store_true", help="with --before: also without a history of the interface"
    )
    what.add_argument(
        "--rolling", action="store_true", help="keep only the newest packets, until the captures are stopped"
    )
    what.add_argument(
        "--format",
        metavar="NAME",
        help="the format of the files at the destinations: pcap or pcapng (-w saves pcap)",
    )
    what.add_argument(
        "--compress",
        choices=COMPRESSIONS,
        help="how files are compressed, at every destination",
    )
    what.add_argument("--tag", action="append", metavar="TEXT", help="a tag for the file (repeatable)")
    what.add_argument("--customer", metavar="TEXT", help="the tag customer:TEXT")
    what.add_argument("--alertid", metavar="TEXT", help="the tag alertid:TEXT")
    _files(command)
    wait = command.add_argument_group("waiting")
    wait.add_argument("--wait", action="store_true", help="until every node that accepts is done")
    wait.add_argument("--expect", type=_positive, metavar="N", help="wait until N nodes have answered")
    wait.add_argument("--deadline", type=_seconds, metavar="S", help="wait no longer than S seconds")
    wait.add_argument(
        "--no-progress", action="store_true", help="a line for each event, instead of the table"
    )
    wait.add_argument("--json", action="store_true", help="the events themselves, one on each line")
    command.add_argument(
        "filter", nargs="*", metavar="FILTER", help="a BPF filter, see pcap-filter(7); it must match as well"
    )


def _which_packets(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group(
        "which packets",
        "Repeat an option to give several values: any of them matches.\nDifferent options must all match.",
    )

    def add(name: str, metavar: str | None, words: str, **settings: Any) -> None:
        settings = {"type": _one, **settings}
        group.add_argument(f"--{name}", action="append", metavar=metavar, help=words, **settings)

    add("host", "ADDRESS", "from or to this address")
    add("net", "NETWORK", "from or to this network, such as 192.0.2.0/24")
    add("port", "N", "from or to this port of TCP, UDP or SCTP", type=_whole)
    add("portrange", "N-N", "from or to a port in this range")
    add("protocol", "NAME", "of this protocol: tcp, udp, icmp, icmp6, arp, …, or its number", type=_protocol)
    add("src", "ADDRESS", "from this address, address:port, [IPv6]:port or network")
    add("dst", "ADDRESS", "to this address, address:port, [IPv6]:port or network")
    add("flags", None, "TCP with this flag", type=_choice, choices=FLAGS)
    add("vlan", "N", "with the tag of this VLAN", type=_whole)
    add("direction", None, "received (in) or sent (out) by the node", type=_choice, choices=DIRECTIONS)


def _text(text: str) -> str:
    """
    A text. An empty one is perhaps a variable that isn't set, and must not stand for all nodes, or for what
    is in a profile.
    """
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        several = _SEVERAL if "," in text else ""
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number{several}") from None


def _positive(text: str) -> int:
    number = _whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is less than 1")
    return number


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    # Nothing is later than NaN.
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time that can pass")
    return seconds


def _one(text: str) -> str:
    if "," in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not one value{_SEVERAL}")
    return text


def _choice(text: str) -> str:
    return _one(text).lower()


def _protocol(text: str) -> str | int:
    text = _one(text)
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else text


def _files(command: argparse.ArgumentParser) -> None:
    file = command.add_argument_group("files")
    file.add_argument(
        "-w",
        dest="write",
        metavar="FILE",
        help="save each capture: %%n is the node, %%i the interface; - shows one as it arrives",
    )
    file.add_argument("--merge", action="store_true", help="with -w: all captures in one file")
    file.add_argument(
        "--puturl",
        dest="put_url",
        type=_text,
        metavar="URL",
        help="where the nodes put the captures: {node}, {interface} and {id} in its path are filled in;"
        " every user of this host can see it here",
    )
    file.add_argument(
        "--puturl-file",
        dest="put_url_file",
        type=_text,
        metavar="FILE",
        help="a file with this URL; or set PCAPCTL_PUTURL",
    )


def _nodes(add: Callable[..., argparse.ArgumentParser]) -> None:
    def request(words: str) -> None:
        command.add_argument("--request", type=_text, action=_Once, metavar="REQUESTID", help=words)

    command = add("list", "nodes:list_captures", "list running and past captures")
    _connection(command)
    command.add_argument(
        "--state",
        action=_Once,
        choices=("capturing", "delivering", "done", "failed"),
        help="only captures in this state",
    )
    request("only captures of this request")
    command.add_argument("--limit", type=_whole, metavar="N", help="up to N captures of each node (100)")
    command.add_argument("--json", action="store_true", help="their states, one on each line")

    command = add("show", "nodes:show", "show the state of a capture")
    _connection(command)
    command.add_argument("id", type=_text, metavar="ID")

    command = add("stop", "nodes:stop", "stop a capture, or all captures of a request")
    _connection(command)
    _address(command)
    command.add_argument("id", type=_text, nargs="?", metavar="ID")
    request("all captures of this request")

    command = add("watch", "watching:watch", "show events as they happen")
    _connection(command, reports=True)
    request("only events about this request")
    for names, metavar, words in (
        (("--node",), "NAME", "only of this node (repeatable)"),
        (("-i", "--interface"), "NAME", "only about this interface (repeatable)"),
        (("--type",), "TYPE", "only of this type, such as delivery or capture.done (repeatable)"),
    ):
        command.add_argument(*names, type=_text, action="append", metavar=metavar, help=words)
    command.add_argument("--progress", action="store_true", help="the progress of captures as well")
    command.add_argument("--json", action="store_true", help="the events themselves, one on each line")

    for name, words in (("interfaces", "list what can be captured on"), ("nodes", "list the nodes")):
        command = add(name, f"nodes:{name}", words)
        _connection(command)
        command.add_argument("--json", action="store_true", help="everything that is known, one on each line")


def _checks(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add("check-config", "checking:check_config", "check a configuration of the daemon")
    command.add_argument("file", type=_text, metavar="FILE")
    command = add("check-request", "checking:check_request", "check a request")
    command.add_argument("file", type=_text, metavar="FILE", help="the message in JSON; - for standard input")
    add("schema", "checking:schema", "print the JSON schema of events")


def _extcap(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "extcap", "extcap_form:extcap", "what Wireshark runs to list and to capture (see extcap(4))"
    )
    for name in ("--extcap-interfaces", "--extcap-dlts", "--extcap-config", "--capture"):
        command.add_argument(name, action="store_true")
    for name in ("--extcap-interface", "--extcap-version", "--extcap-capture-filter", "--fifo", "--filter"):
        command.add_argument(name)
    for name in ("--before", "--packets", "--bytes", "--duration", "--snap"):
        command.add_argument(name, type=_whole)
    command.set_defaults(others_allowed=True)
    command = add("install-extcap", "installing:install_extcap", "let Wireshark list the nodes' interfaces")
    command.add_argument(
        "--dir", type=_text, metavar="DIRECTORY", help="where Wireshark looks for such programs"
    )


def _shell(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add("completion", "completion:completion", "print the completion script of a shell")
    command.add_argument("shell", choices=SHELLS)
    add("profiles", "profile:print_profiles", "list the profiles in pcapctl.toml")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run pcapctl. Return its exit status."""
    _open_missing_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Names, and the help, may have characters that the terminal's encoding doesn't have.
            stream.reconfigure(errors="replace")
    known = parser()
    options, others = known.parse_known_args(arguments)
    # Versions of Wireshark differ in what they add to a call.
    if others and not getattr(options, "others_allowed", False):
        hint = "; options come before the filter" if hasattr(options, "filter") else ""
        known.error(f"unrecognized arguments: {' '.join(others)}{hint}")
    module, _, function = options.run.partition(":")
    from pcapsvc.client.complaint import complain
    from pcapsvc.client.interruption import noticed, on_signal
    from pcapsvc.client.status import ClientError, ExitStatus

    try:
        run = getattr(importlib.import_module(f"pcapsvc.client.{module}"), function)
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            # Until now, it ended the program.
            on_signal(signal.SIGINT, KeyboardInterrupt)
        with noticed():
            status = run(options)
            if status != ExitStatus.INTERRUPTED:
                sys.stdout.flush()
        if status == ExitStatus.INTERRUPTED:
            _discard_output()
        return int(status)
    except ClientError as problem:
        complain(str(problem))
        return int(problem.status)
    except KeyboardInterrupt:
        _discard_output()
        return int(ExitStatus.INTERRUPTED)
    except SystemExit:
        # By a signal.
        _discard_output()
        raise
    except BrokenPipeError:
        # The reader has had enough, and not got everything. Python would complain once more when it exits.
        _discard_output()
        return int(ExitStatus.PARTLY)
    except MemoryError:
        complain("out of memory")
        return int(ExitStatus.PARTLY)
    except OSError as problem:
        # Such as a full disk, to which the output goes.
        complain(problem.strerror or str(problem))
        _discard_output()
        return int(ExitStatus.PARTLY)


def _open_missing_streams() -> None:
    """
    Open the null device in place of standard streams that were closed. Without them, what is for one of these
    would go to another, or to a connection that has its number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # It gets the lowest number that is free.
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - it stays open


def _discard_output() -> None:
    """Discard what could not be written. Python would try again when it exits, and wait for the reader."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            os.dup2(null, stream.fileno())
