"""Programs that are published as jars, as C{scripts/jars} fetched them."""

from __future__ import annotations

import os
from pathlib import Path

from peers.requirement import require, require_command


def java_command(program: str, main: str, *options: str, megabytes: int = 256) -> list[str]:
    """
    The words that start a program, up to its own arguments. Goes on only where Java and the
    program are there.

    @param program: the folder: C{ARTIFACT-VERSION}.
    @param main: the class to start.
    @param options: more of Java's.
    @param megabytes: how large its heap may grow.
    """
    java = require_command("java", "default-jre-headless")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("PCAPSVC_JARS") or cache / "pcapsvc" / "jars") / program
    require(folder.is_dir(), f"{program} is not fetched (scripts/jars does it, for make test)")
    return [
        java,
        f"-Xmx{megabytes}m",
        # It runs for seconds, beside others.
        "-XX:TieredStopAtLevel=1",
        "-XX:+UseSerialGC",
        *options,
        "-cp",
        f"{folder}/*",
        main,
    ]
