"""
C{twistd} with a wall clock that a test sets.

usage: stepped_process.py OFFSET_FILE TWISTD ARGUMENT...

The file has the seconds that the clock is ahead; it is read each time.
"""

from __future__ import annotations

import runpy
import sys
import time
from pathlib import Path

_offset = Path(sys.argv[1])
_true_time = time.time


def _stepped_time() -> float:
    return _true_time() + float(_offset.read_text())


if __name__ == "__main__":
    # Before anything else has taken it by name.
    time.time = _stepped_time
    del sys.argv[:2]
    runpy.run_path(sys.argv[0], run_name="__main__")
