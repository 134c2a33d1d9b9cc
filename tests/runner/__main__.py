"""
The command: C{python -m tests.runner [options] NAME...}.

The last line is C{N passed, N failed, N skipped}. The exit status is 0 only if nothing failed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from peers import nursery
from peers.nursery import Nursery
from tests.chance import SEED, VARIABLE
from tests.runner.machine import most_processes, processors
from tests.runner.pool import PATIENCE_SECONDS, Pool
from tests.runner.schedule import find_modules, load_durations, plan, save_durations

_PROCESSORS = processors()


def _say(line: str) -> None:
    print(line, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.runner", description="run tests in several processes"
    )
    parser.add_argument(
        "-j",
        "--processes",
        type=int,
        default=most_processes(_PROCESSORS),
        help="how many processes run at the same time, if the processors have the time for them "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=PATIENCE_SECONDS,
        metavar="SECONDS",
        help="a process that reports nothing for this long is killed (default: %(default).0f)",
    )
    parser.add_argument("--record", action="store_true", help="record how long each module took")
    parser.add_argument("names", nargs="*", default=["tests"], help="packages, modules, classes or methods")
    return parser.parse_args()


def main() -> int:
    """Run the tests. The exit status."""
    arguments = _arguments()
    # A shell ignores it for what it runs in the background, and so would all programs that tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    started = time.monotonic()
    root = Path.cwd()
    directory = root / f"_trial_temp-{os.getpid()}"
    directory.mkdir()
    os.environ[VARIABLE] = str(SEED)
    # Some environments set it. Each of hundreds of processes would compile all modules again, which takes a
    # daemon a third of its start.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    _say(f"{VARIABLE}={SEED}")
    jobs = plan(root, find_modules(root, arguments.names), load_durations(), _PROCESSORS)
    workers, daemons = Nursery("tests.runner.worker"), Nursery("peers.twistd_program")
    clients = Nursery("peers.pcapctl_program")
    os.environ[nursery.VARIABLE] = daemons.path
    os.environ[nursery.PCAPCTL_VARIABLE] = clients.path
    pool = Pool(root, directory, nursery=workers, say=_say, patience_seconds=arguments.patience)
    interrupted = False
    try:
        asyncio.run(pool.run(jobs, arguments.processes, _PROCESSORS))
    except KeyboardInterrupt:
        interrupted = True
    finally:
        for one in (workers, daemons, clients):
            one.close()
    tally = pool.tally
    for line in tally.details():
        _say(line)
    if arguments.record:
        save_durations(tally.durations)
    if tally.failures or interrupted:
        _say(f"logs: {directory.name}; the same random choices again: {VARIABLE}={SEED}")
    else:
        shutil.rmtree(directory, ignore_errors=True)
    _say(f"in {time.monotonic() - started:.0f} s")
    _say(tally.line)
    if interrupted:
        return 130
    # A name with no tests in it is a mistake.
    return int(bool(tally.failures) or not tally.passed + tally.skipped)


if __name__ == "__main__":
    sys.exit(main())
