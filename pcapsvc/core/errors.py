"""What can go wrong, split by whose fault it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_LONGEST_SHOWN_VALUE = 80

#: What is told of an error that none of ours foresees; the log has the rest.
FAULT = "a fault of the daemon: see its log"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """
    One thing that is wrong with a value that somebody gave us.

    @ivar path: where it stands: a TOML path (C{general.maxpackets}), an option
        (C{--maxpackets}), or a field of a request (C{packets}).
    @ivar rule: the rule that it breaks, as a phrase that goes on from the path:
        C{must be a whole number, 1 or more}.
    @ivar value: the value as it was given, shortened; L{None} where there is
        none, or where it is a secret.
    """

    path: str
    rule: str
    value: str | None = None

    def __str__(self) -> str:
        given = "" if self.value is None else f" = {self.value}"
        return f"{self.path}{given}: {self.rule}"


def shown(value: object) -> str:
    """A value as an error message shows it: C{repr}, on one line, shortened."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} that is nested too deeply"
    return _shortened(text)


def shown_words(text: str, most: int = _LONGEST_SHOWN_VALUE) -> str:
    """Words of others as a message shows them: escaped, on one line, shortened; without quotes."""
    return _shortened(repr(text)[1:-1], most)


def _shortened(text: str, most: int = _LONGEST_SHOWN_VALUE) -> str:
    return text if len(text) <= most else text[:most] + "…"


class PcapsvcError(Exception):
    """The root of our errors. Never raised itself."""


class _Problems(PcapsvcError):
    """An error that tells every problem that was found, not only the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class SettingsError(_Problems):
    """The operator's fault: the configuration or the options are wrong."""


class RequestRejected(_Problems):
    """The sender's fault: the request is wrong, and trying it again cannot help."""


class CaptureUnavailable(PcapsvcError):
    """
    The node's fault: this interface cannot be captured on now.

    @ivar interface: the interface's name.
    """

    def __init__(self, interface: str, reason: str) -> None:
        super().__init__(f"{interface}: {reason}")
        self.interface = interface
        self.reason = reason


class CaptureForbidden(CaptureUnavailable):
    """The operator's fault: this process may not capture, on whichever interface."""


class NodeBusy(PcapsvcError):
    """The node's fault, and a passing one: there is no memory, or no descriptor, for one more capture."""


class EncoderError(PcapsvcError):
    """The node's fault: a recording could not be encoded."""


class DestinationError(PcapsvcError):
    """
    The remote's fault: a destination did not take a capture.

    @ivar retryable: whether the same attempt may succeed later, with nobody's help.
    @ivar retry_after_seconds: how long the destination asks to be left alone; L{None}
        where it doesn't say.
    """

    def __init__(self, message: str, *, retryable: bool, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.retry_after_seconds = retry_after_seconds


class SpoolError(PcapsvcError):
    """The node's fault: the spool can't keep a capture, or has not kept it whole."""
