"""The exit statuses of pcapctl, and the errors that end it."""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar

from pcapsvc.core.errors import PcapsvcError
from pcapsvc.core.text import one_line

_LONGEST_LINE = 4000


class ExitStatus(IntEnum):
    """What a script learns from C{pcapctl}."""

    DELIVERED = 0
    PARTLY = 1
    USAGE = 2
    REJECTED = 3
    NO_ANSWER = 4
    INTERRUPTED = 130


class ClientError(PcapsvcError):
    """
    Ends pcapctl. The message says why, without secrets and control characters, in one line or several.

    @cvar status: what it exits with.
    """

    status: ClassVar[ExitStatus] = ExitStatus.PARTLY

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(map(_clean, message.split("\n"))))


class UsageProblem(ClientError):
    """The user's fault: an option, the configuration or the request is wrong."""

    status = ExitStatus.USAGE


class Refused(ClientError):
    """A node has answered that it will not do it."""

    status = ExitStatus.REJECTED


class NoAnswer(ClientError):
    """Nobody answers, or the connection is lost."""

    status = ExitStatus.NO_ANSWER


class NotMeant(NoAnswer):
    """A node has answered that the message is for other nodes."""


def _clean(line: str) -> str:
    indent = line[: len(line) - len(line.lstrip(" "))]
    return indent + one_line(line, most=_LONGEST_LINE)


def not_understood(place: object, problem: Exception) -> NoAnswer:
    """
    The error for an unexpected answer, for which libraries raise exceptions of any kind, in any words.

    @param place: the server.
    @param problem: what was raised.
    """
    return NoAnswer(f"{place}: the answer can't be understood ({type(problem).__name__})")
