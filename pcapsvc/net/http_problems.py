"""The kinds of problem details that a program may want to tell apart (RFC 9457, section 3.1.1)."""

from __future__ import annotations

from collections.abc import Sequence

from pcapsvc.core.errors import Problem
from pcapsvc.net.http_resource import HTTPProblem

REJECTED = "/pcapsvc/problems/request-rejected"
BAD_PARAMETERS = "/pcapsvc/problems/bad-parameters"
NOT_FOR_THIS_NODE = "/pcapsvc/problems/not-for-this-node"
BUSY = "/pcapsvc/problems/busy"
NOT_READY = "/pcapsvc/problems/not-ready"


def request_rejected(problems: Sequence[Problem]) -> HTTPProblem:
    """The answer to a body that breaks rules. It lists each of them."""
    return _invalid(problems, type=REJECTED, title="Request rejected")


def bad_parameters(problems: Sequence[Problem]) -> HTTPProblem:
    """The answer to wrong parameters in the query of a URL."""
    return _invalid(problems, type=BAD_PARAMETERS, title="Bad parameters")


def busy(reason: str, *, retry_after_seconds: int) -> HTTPProblem:
    """The answer if there is no capacity now, and there may be some later."""
    headers = {"Retry-After": str(retry_after_seconds)}
    return HTTPProblem(503, reason, type=BUSY, title="Busy", headers=headers)


def _invalid(problems: Sequence[Problem], *, type: str, title: str) -> HTTPProblem:
    detail = "; ".join(str(problem) for problem in problems)
    listed = [problem.as_mapping() for problem in problems]
    return HTTPProblem(400, detail, type=type, title=title, problems=listed)
