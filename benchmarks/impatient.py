"""
The daemon, with sources that reconnect at once. With their usual pauses of up to 10 s, what
L{benchmarks.soak} does in minutes would take more than an hour. Everything else is unchanged.

usage: impatient.py twistd OPTIONS…
"""

from __future__ import annotations

import sys
from typing import Any

from twisted.scripts.twistd import run

from pcapsvc.net.outages import Backoff
from pcapsvc.sources.redis.source import RedisSource
from pcapsvc.sources.sqs.source import SQSSource

_RETRY_SECONDS = (0.05, 0.2)


def _hurry(function: Any, **defaults: Any) -> None:
    """Change the default arguments of a function."""
    known = function.__kwdefaults__ or {}
    assert defaults.keys() <= known.keys(), defaults
    function.__kwdefaults__ = {**known, **defaults}


if __name__ == "__main__":
    _hurry(RedisSource.__init__, retry_seconds=_RETRY_SECONDS, check_seconds=2.0, answer_seconds=1.0)
    _hurry(SQSSource.__init__, retry_seconds=_RETRY_SECONDS, answer_seconds=2.0)
    # Kafka's source creates its own back-off.
    Backoff.__init__.__defaults__ = _RETRY_SECONDS  # type: ignore[misc]
    sys.argv = sys.argv[1:]
    run()
