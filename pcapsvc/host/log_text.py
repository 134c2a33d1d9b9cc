"""The text of a line of the log."""

from __future__ import annotations

from twisted.logger import LogEvent, eventAsText

from pcapsvc.core.mask import of_process


def text_of(event: LogEvent) -> str:
    """What an event says, with the traceback of its failure, and without secrets: whoever logged it."""
    return of_process(eventAsText(event, includeTimestamp=False, includeSystem=False))
