"""What a test needs of the machine: skipped where it is missing, except in CI."""

from __future__ import annotations

import os
import shutil
from unittest import SkipTest

from twisted.trial.unittest import FailTest

# Debian keeps these out of an ordinary user's path.
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def require(condition: object, reason: str) -> None:
    """
    Go on only where a condition holds.

    @param condition: anything; its truth counts.
    @param reason: what is missing, as the report of the run shows it.
    @raise SkipTest: it doesn't hold, on a user's machine.
    @raise FailTest: it doesn't hold, and C{CI} is C{true} in the environment.
    """
    if condition:
        return
    if os.environ.get("CI") == "true":
        raise FailTest(f"{reason}, and CI must not skip")
    raise SkipTest(reason)


def require_command(command: str, package: str) -> str:
    """
    Go on only where a program is installed.

    @param package: the Debian package that has it, for the reason.
    @return: the program's path.
    """
    path = shutil.which(command, path=_PATH)
    require(path, f"{command} is not installed (package {package})")
    assert path is not None
    return path


def require_root(purpose: str) -> None:
    """
    Go on only as root.

    @param purpose: what root is needed for: C{to make a network namespace}.
    """
    require(os.geteuid() == 0, f"must be root {purpose}")
