"""The commands that ask no node: C{check-request}, C{check-config} and C{schema}."""

from __future__ import annotations

import signal
import subprocess
import sys
from argparse import Namespace
from importlib.resources import files

from pcapsvc.client.complaint import complain
from pcapsvc.client.message import check_message
from pcapsvc.client.status import ExitStatus, UsageProblem
from pcapsvc.core.request import MAX_BODY_BYTES

# The daemon's own entry, in a process of its own: the client imports nothing of it.
_DAEMON_CHECK = "pcapsvc.check"


def check_request(options: Namespace) -> ExitStatus:
    """Check a request by the rules that hold on every node."""
    try:
        if options.file == "-":
            body = sys.stdin.buffer.read(MAX_BODY_BYTES + 1)
        else:
            with open(options.file, "rb") as file:
                body = file.read(MAX_BODY_BYTES + 1)
    except OSError as problem:
        raise UsageProblem(f"{options.file}: {problem.strerror}") from None
    request = check_message(body)
    for warning in getattr(request, "warnings", ()):
        complain(str(warning))
    return ExitStatus.DELIVERED


def check_config(options: Namespace) -> ExitStatus:
    """Check a configuration of the daemon, as the daemon does when it starts."""
    # Nothing is imported from the current directory, which may be anybody's.
    command = [sys.executable, "-P", "-m", _DAEMON_CHECK, options.file]
    # At a Ctrl-C, it is ended from here, and has no traceback.
    done = subprocess.run(command, check=False, preexec_fn=_ignore_interrupts)
    return ExitStatus.DELIVERED if done.returncode == 0 else ExitStatus.USAGE


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def schema(options: Namespace) -> ExitStatus:
    """Print the JSON schema of events."""
    sys.stdout.write(files("pcapsvc.core").joinpath("event.schema.json").read_text("utf-8"))
    return ExitStatus.DELIVERED
