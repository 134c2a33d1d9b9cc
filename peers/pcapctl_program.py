"""C{pcapctl}, as a program of L{peers.nursery_process}."""

from __future__ import annotations

import sys
from typing import TextIO

#: What its commands import: those for a terminal are left out, as a forked process has none.
PRELOADED = (
    "boto3.session",
    "kafka",
    "pcapsvc.bounded.boto_answers",
    "pcapsvc.client.__main__",
    "pcapsvc.client.extcap",
    "pcapsvc.client.extcap_form",
    "pcapsvc.client.fetching",
    "pcapsvc.client.kafka_client",
    "pcapsvc.client.main",
    "pcapsvc.client.merging",
    "pcapsvc.client.nodes",
    "pcapsvc.client.requesting",
    "pcapsvc.client.streaming",
    "pcapsvc.client.transports.http",
    "pcapsvc.client.transports.kafka",
    "pcapsvc.client.transports.redis",
    "pcapsvc.client.transports.sqs",
    "pcapsvc.client.watching",
)
#: Nothing of pcapctl needs it.
NOT_PRELOADED = "twisted.internet.reactor"


def main() -> int:
    """Run it. The exit status."""
    from pcapsvc.client.__main__ import run

    # Those of the nursery know what they were opened for: a terminal or a file, where one can seek.
    sys.stdout = _again(sys.stdout, -1)
    sys.stderr = _again(sys.stderr, 1)
    return run()


def _again(stream: TextIO, buffering: int) -> TextIO:
    number, encoding, errors = stream.fileno(), stream.encoding, stream.errors
    return open(number, "w", buffering, encoding=encoding, errors=errors, closefd=False)
