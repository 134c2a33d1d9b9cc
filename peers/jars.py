"""Java programs that C{scripts/jars} has fetched."""

from __future__ import annotations

import os
from pathlib import Path

from peers.requirement import require, require_command


def java_command(program: str, main: str, *options: str, megabytes: int = 256) -> list[str]:
    """
    The command that starts a program, without the program's own arguments. The test is skipped if Java or
    the program is missing.

    @param program: the directory of the program: C{ARTIFACT-VERSION}.
    @param main: the class to start.
    @param options: more options for Java.
    @param megabytes: the maximum size of the heap.
    """
    java = require_command("java", "default-jre-headless")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = Path(os.environ.get("PCAPSVC_JARS") or cache / "pcapsvc" / "jars") / program
    require(directory.is_dir(), f"{program} has not been fetched (make test runs scripts/jars, which does)")
    return [
        java,
        f"-Xmx{megabytes}m",
        # It runs for seconds only, next to others: start quickly, and use one thread to collect garbage.
        "-XX:TieredStopAtLevel=1",
        "-XX:+UseSerialGC",
        *options,
        "-cp",
        f"{directory}/*",
        main,
    ]
