"""A disk that hangs or refuses, for the processes of tests. See C{shim.c}."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from twisted.trial.unittest import SkipTest


def built_shim(folder: Path) -> Path:
    """
    The shared library for C{LD_PRELOAD}, built in a directory.

    @raise SkipTest: if there is no compiler.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SkipTest("no C compiler: scripts/setup test installs one")
    library = folder / "shim.so"
    source = Path(__file__).with_name("shim.c")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-Wall", "-Wno-nonnull-compare", "-o", library, source, "-ldl"],
        check=True,
    )
    return library


class Shim:
    """
    The disk below one directory.

    @param folder: where to build.
    @param prefix: of the paths that are affected.
    @param settings: of the environment, such as C{SHIM_DELAY}.
    """

    def __init__(self, folder: Path, prefix: Path, **settings: str) -> None:
        self._trigger, self._held = folder / "trigger", folder / "held"
        variables = {
            "LD_PRELOAD": str(built_shim(folder)),
            "SHIM_PREFIX": str(prefix),
            "SHIM_TRIGGER": str(self._trigger),
            "SHIM_HELD": str(self._held),
            **settings,
        }
        self.wrapper = ("env", *(f"{name}={value}" for name, value in variables.items()))

    def begin(self) -> None:
        """Let the disk hang, or refuse."""
        self._trigger.touch()

    def end(self) -> None:
        """Let the disk work again."""
        self._trigger.unlink(missing_ok=True)

    def held(self) -> list[str]:
        """The calls that have held up a program's first thread, in which its reactor runs."""
        return self._held.read_text().splitlines() if self._held.exists() else []
