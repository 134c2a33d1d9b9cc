"""Run the benchmarks, and print a table for each: C{python -m benchmarks [NAME ...] [--rounds N]}."""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import tempfile
from pathlib import Path
from unittest import SkipTest

from benchmarks import armed, capture, encoding, lookback, many, others, remembering, soak, steered, streaming

_BENCHMARKS = {
    "capture": capture.run,
    "many": many.run,
    "armed": armed.run,
    "lookback": lookback.run,
    "others": others.run,
    "steered": steered.run,
    "encoding": encoding.run,
}
# These take minutes: they run only if they are named.
_LONG = ("soak", "captures", "remembering", "streaming")
_MEMORY = Path("/dev/shm")


def main(words: list[str]) -> int:
    """
    The command line.

    @return: the exit status: 0 if all ran, whatever they measured.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    known = ", ".join(_BENCHMARKS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {known} (all); or {', '.join(_LONG)}")
    parser.add_argument(
        "--rounds", type=int, help="how often each is measured; for captures, how many there are"
    )
    minutes = f"how long soak ({soak.MINUTES:g}) or remembering ({remembering.MINUTES:g}) runs"
    parser.add_argument("--minutes", type=float, help=minutes)
    options = parser.parse_args(words)
    for name in options.names:
        if name not in (*_BENCHMARKS, *_LONG):
            parser.error(f"there is no benchmark {name!r}")
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds is 1 or more")
    if options.minutes is not None and not 1 <= options.minutes <= 10_000:
        parser.error("--minutes is 1 to 10000")
    benchmarks = {
        **_BENCHMARKS,
        "soak": lambda _: soak.run(options.minutes),
        "captures": soak.run_captures,
        "remembering": lambda _: remembering.run(options.minutes),
        "streaming": lambda _: streaming.run(),
    }

    # A signal is an exception, so that every process and namespace is cleaned up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Some environments set it. The modules of an installed daemon are compiled.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # All files are in memory, because the disk is not what is measured.
    if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK):
        tempfile.tempdir = str(_MEMORY)
    print(f"Linux {platform.release()}, Python {platform.python_version()}, {os.cpu_count()} CPUs")
    try:
        for name in options.names or _BENCHMARKS:
            # Other programs take CPU time from both sides, and make packets wait in the rings.
            print(f"load average before: {os.getloadavg()[0]:.2f}\n", flush=True)
            benchmarks[name](options.rounds)
            print(flush=True)
    except SkipTest as missing:
        print(f"cannot measure: {missing}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
