"""The resources of the HTTP source: C{/captures} and C{/captures/ID}."""

# twisted.web has hardly any types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from pcapsvc.core.errors import Problem
from pcapsvc.core.message import Message
from pcapsvc.core.result import Accepted, Busy, NotForThisNode, Verdict
from pcapsvc.interfaces.requests import IRequestSink
from pcapsvc.net.http_resource import Answer, HTTPProblem, Resource

#: When a client may try again after the node was busy.
RETRY_AFTER_SECONDS = 10

#: The types of problem details that a program may want to tell apart (RFC 9457, section 3.1.1).
REJECTED = "/pcapsvc/problems/request-rejected"
NOT_FOR_THIS_NODE = "/pcapsvc/problems/not-for-this-node"
BUSY = "/pcapsvc/problems/busy"

_CAPTURE_ID = re.compile(rb"[A-Za-z0-9]{1,64}")

Lookup = Callable[[str], Mapping[str, Any] | None]


def routes(sink: IRequestSink, source: str, lookup: Lookup) -> Resource:
    """
    The tree of resources.

    @param source: the name of the source that submits to C{sink}.
    @param lookup: returns the state of a capture by its id, ready for JSON; L{None} if the id is unknown.
    """
    root = Resource()
    root.putChild(b"captures", _Captures(sink, source, lookup))
    return root


class _Captures(Resource):
    allowedMethods = (b"POST",)

    def __init__(self, sink: IRequestSink, source: str, lookup: Lookup) -> None:
        super().__init__()
        self._sink = sink
        self._source = source
        self._lookup = lookup

    def getChild(self, path: bytes, request: Any) -> Resource:
        if not _CAPTURE_ID.fullmatch(path):
            return super().getChild(path, request)
        return _Capture(path.decode("ascii"), self._lookup)

    async def render_POST(self, request: Any) -> Answer:
        # Not cancelled if the client disconnects: the captures that it asked for go on.
        body = request.content.read()
        return _answer(await self._sink.submit(Message(source=self._source, body=body)))


class _Capture(Resource):
    allowedMethods = (b"GET", b"HEAD")

    def __init__(self, capture_id: str, lookup: Lookup) -> None:
        super().__init__()
        self._capture_id = capture_id
        self._lookup = lookup

    def render_GET(self, request: Any) -> Answer:
        state = self._lookup(self._capture_id)
        if state is None:
            raise HTTPProblem(404, "There is no capture with this id.")
        return Answer.json(state)


def _answer(verdict: Verdict) -> Answer:
    if isinstance(verdict, Accepted):
        captures = [{"id": each.capture_id, "interface": each.interface} for each in verdict.captures]
        headers = {"Location": f"/captures/{captures[0]['id']}"} if len(captures) == 1 else None
        content = {
            "captures": captures,
            "problems": [_plain(problem) for problem in verdict.problems],
            "warnings": [_plain(warning) for warning in verdict.warnings],
        }
        return Answer.json(content, status=202, headers=headers)
    if isinstance(verdict, NotForThisNode):
        raise HTTPProblem(
            404, "The request is for other nodes.", type=NOT_FOR_THIS_NODE, title="Not for this node"
        )
    if isinstance(verdict, Busy):
        raise HTTPProblem(
            503,
            verdict.reason,
            type=BUSY,
            title="Busy",
            headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
        )
    raise HTTPProblem(
        400,
        "; ".join(str(problem) for problem in verdict.problems),
        type=REJECTED,
        title="Request rejected",
        problems=[_plain(problem) for problem in verdict.problems],
    )


def _plain(problem: Problem) -> dict[str, str | None]:
    return {"path": problem.path, "value": problem.value, "rule": problem.rule}
