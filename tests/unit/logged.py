"""What is logged during a test."""

from __future__ import annotations

from collections.abc import Callable
from unittest import TestCase

from twisted.logger import LogEvent, formatEvent, globalLogPublisher


def logged(case: TestCase, namespace: str = "pcapsvc") -> Callable[[], list[str]]:
    """
    Record what is logged from now on.

    @param namespace: only what these modules log.

    @return: a function that returns the messages.
    """
    events: list[LogEvent] = []

    def observe(event: LogEvent) -> None:
        if str(event.get("log_namespace")).startswith(namespace):
            events.append(event)

    globalLogPublisher.addObserver(observe)
    case.addCleanup(globalLogPublisher.removeObserver, observe)
    return lambda: [formatEvent(event) for event in events]
