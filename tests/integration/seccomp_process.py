"""
Runs a program in Python within the system call filter of a systemd unit: C{seccomp_process.py UNIT PROGRAM…}.
The process needs C{no_new_privs}, and libseccomp, which systemd itself uses.
"""

from __future__ import annotations

import ctypes
import errno
import os
import runpy
import subprocess
import sys
from pathlib import Path

# seccomp.h of libseccomp: SCMP_ACT_ALLOW, SCMP_ACT_ERRNO(), and the number of a name that it doesn't know.
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_UNKNOWN = -1


def members(names: list[str]) -> set[str]:
    """System calls, of which some are given as sets (C{@system-service}, systemd.exec(5))."""
    found = set()
    for name in names:
        if not name.startswith("@"):
            found.add(name)
            continue
        listing = subprocess.run(
            ["systemd-analyze", "--no-pager", "syscall-filter", name],
            capture_output=True,
            text=True,
            check=True,
        )
        words = [line.strip() for line in listing.stdout.splitlines()[1:]]
        found |= members([word for word in words if word and not word.startswith("#")])
    return found


def allowed(unit: str) -> set[str]:
    """The system calls that a unit allows, by its lines in their order, of which the first allows some."""
    found = members(["@default"])
    for line in unit.splitlines():
        key, _, value = line.partition("=")
        if key == "SystemCallFilter":
            named = members(value.removeprefix("~").split())
            found = found - named if value.startswith("~") else found | named
    return found


def confine(calls: set[str]) -> None:
    """Refuse all other system calls of this process, and of those that it starts, with EPERM."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = (ctypes.c_uint32,)
    library.seccomp_rule_add.argtypes = (ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint)
    library.seccomp_load.argtypes = (ctypes.c_void_p,)
    context = library.seccomp_init(_ERRNO | errno.EPERM)
    for call in sorted(calls):
        number = library.seccomp_syscall_resolve_name(call.encode())
        if number != _UNKNOWN:
            library.seccomp_rule_add(context, _ALLOW, number, 0)
    code = library.seccomp_load(context)
    if code:
        raise OSError(-code, os.strerror(-code))


if __name__ == "__main__":
    confine(allowed(Path(sys.argv[1]).read_text()))
    # Not by exec: an ordinary user may not be able to reach this interpreter, which was started before.
    del sys.argv[:2]
    runpy.run_path(sys.argv[0], run_name="__main__")
