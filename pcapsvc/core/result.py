"""The verdicts on requests, and what a destination returns."""

from __future__ import annotations

from dataclasses import dataclass

from pcapsvc.core.errors import Problem


@dataclass(frozen=True, kw_only=True)
class StartedCapture:
    """A capture that has begun."""

    capture_id: str
    interface: str


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """
    The captures have begun.

    @ivar problems: of those interfaces on which none could, though others go on.
    """

    captures: tuple[StartedCapture, ...]
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NotForThisNode:
    """The request names other nodes."""


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """The request can't be done, and trying it again cannot help."""

    problems: tuple[Problem, ...]


@dataclass(frozen=True, kw_only=True)
class Busy:
    """
    The request is good, and there is no room for it now.

    @ivar reason: what there is too much of, in words.
    """

    reason: str


Verdict = Accepted | NotForThisNode | Rejected | Busy


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """
    A destination has a capture.

    @ivar location: where: a path, or a URL. It holds no secret.
    """

    destination: str
    location: str
