"""Java programs that C{scripts/jars} has fetched."""

from __future__ import annotations

import os
from pathlib import Path

from peers.requirement import require, require_command


def directory_of(program: str) -> Path:
    """
    The directory of a program's jars, which may not be there.

    @param program: C{ARTIFACT-VERSION}.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("PCAPSVC_JARS") or cache / "pcapsvc" / "jars") / program


def archive_of(program: str) -> Path:
    """
    The file with a program's classes as Java maps them into memory (class data sharing), which halves what a
    start costs. L{peers.archives} writes it. Without it, or with another Java, they are read from the jars.
    """
    return directory_of(program).with_name(f"{program}-used.jsa")


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
    directory = directory_of(program)
    archive = archive_of(program)
    require(directory.is_dir(), f"{program} has not been fetched (make test runs scripts/jars, which does)")
    return [
        java,
        f"-Xmx{megabytes}m",
        # It runs for seconds only, next to others: start quickly, and use one thread to collect garbage.
        "-XX:TieredStopAtLevel=1",
        "-XX:+UseSerialGC",
        # Map the archive where it was written for: elsewhere all of its pointers have to be changed. Before
        # Java 15, there is no such option.
        "-XX:+IgnoreUnrecognizedVMOptions",
        "-XX:+UnlockDiagnosticVMOptions",
        "-XX:ArchiveRelocationMode=0",
        # Nobody looks at it with jstat.
        "-XX:-UsePerfData",
        *([f"-XX:SharedArchiveFile={archive}"] if archive.is_file() else []),
        *options,
        "-cp",
        f"{directory}/*",
        main,
    ]
