"""The exit statuses of pcapctl, and the errors that end it."""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar

from pcapsvc.core.errors import PcapsvcError


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
    Ends pcapctl. The message says why, without secrets.

    @cvar status: what it exits with.
    """

    status: ClassVar[ExitStatus] = ExitStatus.PARTLY


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
