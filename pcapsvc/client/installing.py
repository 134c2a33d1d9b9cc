"""C{pcapctl install-extcap}: lets Wireshark find the interfaces of the nodes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from shlex import quote

from pcapsvc.client.status import ExitStatus, UsageProblem

#: Since this version, it is not beside the configuration any more (the release notes of Wireshark 4.2).
_MOVED = (4, 2)
# In the first line, the path of an interpreter ends at a blank, and at the length of the line (execve(2): 127
# bytes in kernels before 5.1). Otherwise sh starts Python, which takes what is for sh as a text.
_LONGEST_FIRST_LINE = 127
_BY_SHELL = """\
#!/bin/sh
'''exec' {python} "$0" "$@"
' '''
"""
_SCRIPT = """\
import sys

from pcapsvc.client.__main__ import run

sys.argv[1:1] = ["extcap"]
sys.exit(run())
"""


def install_extcap(options: Namespace) -> ExitStatus:
    """Run the command. The path of what is installed is printed."""
    directory = Path(options.dir or extcap_directory(os.environ, wireshark_version()))
    path = directory / "pcapctl"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Not in place: Wireshark may be running it.
        descriptor, part = tempfile.mkstemp(prefix=".pcapctl-", dir=directory)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(_beginning(sys.executable) + _SCRIPT)
                os.fchmod(descriptor, 0o755)
            os.replace(part, path)
        except BaseException:
            os.unlink(part)
            raise
    except OSError as problem:
        raise UsageProblem(f"{path}: {problem.strerror}") from None
    print(path)
    return ExitStatus.DELIVERED


def _beginning(python: str) -> str:
    line = f"#!{python}\n"
    if len(os.fsencode(line)) <= _LONGEST_FIRST_LINE and not re.search(r"\s", python):
        return line
    return _BY_SHELL.format(python=quote(python))


def extcap_directory(environment: Mapping[str, str], version: tuple[int, int] | None) -> Path:
    """
    Where Wireshark looks for the programs of a user.

    @param version: that of Wireshark; L{None} if it isn't known.
    """
    if environment.get("WIRESHARK_EXTCAP_DIR"):
        return Path(environment["WIRESHARK_EXTCAP_DIR"])
    home = Path(environment.get("HOME") or "/")
    if version is None or version >= _MOVED:
        return home / ".local" / "lib" / "wireshark" / "extcap"
    configuration = environment.get("XDG_CONFIG_HOME")
    return (Path(configuration) if configuration else home / ".config") / "wireshark" / "extcap"


def wireshark_version() -> tuple[int, int] | None:
    """The version of the Wireshark that is installed; L{None} if there is none."""
    for program in ("tshark", "wireshark"):
        if shutil.which(program) is None:
            continue
        try:
            done = subprocess.run([program, "--version"], capture_output=True, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        found = re.search(rb"^(?:TShark|Wireshark)\D*(\d+)\.(\d+)", done.stdout, re.MULTILINE)
        if found:
            return int(found[1]), int(found[2])
    return None
