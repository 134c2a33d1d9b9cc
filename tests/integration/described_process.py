"""Describes itself, as JSON on its standard output: a program of L{peers.nursery_process}."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

PRELOADED = ()
NOT_PRELOADED = "twisted"


def main() -> int:
    """Describe it."""
    handlers = {number.name: str(signal.getsignal(number)) for number in signal.Signals}
    described = {
        "arguments": sys.argv[1:],
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "directory": os.getcwd(),
        "environment": dict(os.environ),
        "first in path": sys.path[:2],
        "handlers": handlers,
        "limits": Path("/proc/self/limits").read_text(),
        "session": os.getsid(0) == os.getpid(),
    }
    sys.stdout.write(json.dumps(described))
    return 3


if __name__ == "__main__":
    sys.exit(main())
