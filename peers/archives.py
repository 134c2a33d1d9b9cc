"""
Writes the archives of classes with which the Java programs start faster, if they are missing.

usage: python -m peers.archives

Java writes an archive when a program ends that has used the classes (JEP 350, -XX:ArchiveClassesAtExit).
"""

from __future__ import annotations

import os
from unittest import SkipTest

from peers import kafka, sqs
from peers.jars import archive_of

# Sorting and writing the classes takes seconds.
_PATIENCE_SECONDS = 120.0


def main() -> None:
    """Write what is missing, of the programs that are there."""
    for program, make in ((kafka.PROGRAM, kafka.KafkaBroker), (sqs.PROGRAM, sqs.SQSServer)):
        archive = archive_of(program)
        if archive.exists():
            continue
        new = archive.with_suffix(f".{os.getpid()}")
        try:
            server = make(wrapper=("env", f"JAVA_TOOL_OPTIONS=-XX:ArchiveClassesAtExit={new}"))
        except SkipTest:
            continue
        try:
            server.start()
            server.exit(_PATIENCE_SECONDS)
        finally:
            server.stop()
        new.rename(archive)


if __name__ == "__main__":
    main()
