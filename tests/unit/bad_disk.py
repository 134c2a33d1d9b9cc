"""File systems that refuse some calls."""

from __future__ import annotations

import os
import stat
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

_FSYNC = os.fsync


def refuse_syncing(test: SynchronousTestCase, number: int) -> None:
    """Have fsync(2) of directories fail."""

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        _FSYNC(descriptor)

    test.patch(os, "fsync", fsync)


def refuse_modes(test: SynchronousTestCase, number: int) -> None:
    """Have chmod(2) and fchmod(2) fail."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    test.patch(os, "chmod", refuse)
    test.patch(os, "fchmod", refuse)
