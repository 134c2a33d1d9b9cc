"""The end of the process, once everything has stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from threading import Thread

from twisted.logger import Logger

#: How long the process may take to exit after the reactor has stopped, in seconds. The log is drained
#: within two.
EXIT_SECONDS = 4.0


def bound_exit(
    *,
    sleep: Callable[[float], None] = time.sleep,
    exit_now: Callable[[int], object] = os._exit,
) -> None:
    """
    End the process with status 0 after L{EXIT_SECONDS} if it has not exited by then: Python waits for every
    thread that is not a daemon, such as one that somebody has started at the manhole.

    @param sleep: waits for a number of seconds.
    @param exit_now: ends the process with a status.
    """

    def wait() -> None:
        sleep(EXIT_SECONDS)
        exit_now(0)

    try:
        Thread(target=wait, daemon=True, name="pcapsvc-exit").start()
    except RuntimeError as error:
        Logger().warn("the end of the process is not bounded: {error}", error=error)
