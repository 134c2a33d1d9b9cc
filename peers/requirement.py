"""What a test needs of the machine. If that is missing, the test is skipped; in CI, it fails."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from unittest import SkipTest

from twisted.trial.unittest import FailTest

# Debian does not have these in the path of ordinary users.
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def require(condition: object, reason: str) -> None:
    """
    Continue only if a condition holds.

    @param condition: anything with a truth value.
    @param reason: what is missing, for the report of the run.
    @raise SkipTest: it doesn't hold.
    @raise FailTest: it doesn't hold, and C{CI} is C{true} in the environment.
    """
    if condition:
        return
    if os.environ.get("CI") == "true":
        raise FailTest(f"{reason}, and CI must not skip")
    raise SkipTest(reason)


def require_command(command: str, package: str) -> str:
    """
    Continue only if a program is installed.

    @param package: the Debian package that contains it, for the report.
    @return: the program's path.
    """
    path = shutil.which(command, path=_PATH)
    require(path, f"{command} is not installed (package {package})")
    assert path is not None
    return path


def require_root(purpose: str) -> None:
    """
    Continue only as root.

    @param purpose: what root is needed for: C{to make a network namespace}.
    """
    require(os.geteuid() == 0, f"must be root {purpose}")


def has_ipv6() -> bool:
    """Whether the loopback interface has IPv6."""
    table = Path("/proc/net/if_inet6")
    return table.exists() and f"{1:032x}" in table.read_text()


def require_ipv6() -> None:
    """Continue only if the loopback interface has IPv6."""
    require(has_ipv6(), "IPv6 is needed on loopback")
