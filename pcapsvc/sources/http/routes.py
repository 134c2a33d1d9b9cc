"""The resource of the HTTP source: C{POST /captures}."""

# twisted.web has hardly any types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from typing import Any

from pcapsvc.core.message import Message
from pcapsvc.core.result import Accepted, Busy, Ended, NotForThisNode, Verdict
from pcapsvc.interfaces.requests import IRequestSink
from pcapsvc.net.http_problems import NOT_FOR_THIS_NODE, busy, request_rejected
from pcapsvc.net.http_resource import Answer, HTTPProblem, Resource

#: When a client may try again after the node was busy.
RETRY_AFTER_SECONDS = 10


def routes(sink: IRequestSink, source: str) -> Resource:
    """
    The tree of resources.

    @param source: the name of the source that submits to C{sink}.
    """
    root = Resource()
    root.putChild(b"captures", _Captures(sink, source))
    return root


class _Captures(Resource):
    allowedMethods = (b"POST",)

    def __init__(self, sink: IRequestSink, source: str) -> None:
        super().__init__()
        self._sink = sink
        self._source = source

    async def render_POST(self, request: Any) -> Answer:
        # Not cancelled if the client disconnects: the captures that it asked for go on.
        body = request.content.read()
        return _answer(await self._sink.submit(Message(source=self._source, body=body)))


def _answer(verdict: Verdict) -> Answer:
    if isinstance(verdict, Ended):
        return Answer.json({"captures": _plain_captures(verdict)})
    if isinstance(verdict, Accepted):
        captures = _plain_captures(verdict)
        headers = {"Location": f"/captures/{captures[0]['id']}"} if len(captures) == 1 else None
        content = {
            "captures": captures,
            "filter": verdict.filter,
            "problems": [problem.as_mapping() for problem in verdict.problems],
            "warnings": [warning.as_mapping() for warning in verdict.warnings],
        }
        return Answer.json(content, status=202, headers=headers)
    if isinstance(verdict, NotForThisNode):
        raise HTTPProblem(
            404, "The request is for other nodes.", type=NOT_FOR_THIS_NODE, title="Not for this node"
        )
    if isinstance(verdict, Busy):
        raise busy(verdict.reason, retry_after_seconds=RETRY_AFTER_SECONDS)
    raise request_rejected(verdict.problems)


def _plain_captures(verdict: Accepted | Ended) -> list[dict[str, str]]:
    return [{"id": each.capture_id, "interface": each.interface} for each in verdict.captures]
