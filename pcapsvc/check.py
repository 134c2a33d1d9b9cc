"""Checks a configuration: C{python -m pcapsvc.check FILE}. It starts nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pcapsvc import tap


def main(arguments: Sequence[str]) -> int:
    """
    Build the service for a configuration, as C{twistd} would before it starts it.

    @param arguments: the path of the configuration.

    @return: 0 if there is no problem; 2 without one path.

    @raise SystemExit: with 1, if there is a problem: all of them are on standard error.
    """
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m pcapsvc.check FILE\n")
        return 2
    options = tap.Options()
    options.parseOptions(["--config", arguments[0]])
    tap.makeService(options)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
