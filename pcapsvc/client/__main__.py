"""Where C{pcapctl} begins. From its first line on, Ctrl-C ends it without a traceback."""

from __future__ import annotations

import signal
import sys


def run() -> int:
    """Run pcapctl. Return its exit status."""
    is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_usual:
        # An exception while modules are imported has a traceback, or makes msgspec crash.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        from pcapsvc.client.main import main

        return main()
    except KeyboardInterrupt:
        return 130
    finally:
        if is_usual:
            # While Python ends, nothing can handle an exception any more.
            signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(run())
