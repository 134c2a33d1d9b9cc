"""The HTTP API of one node: POST /captures, and GET /events."""

from __future__ import annotations

from collections.abc import Iterator

from pcapsvc.client.api import ApiProblem, Body, NodeApi
from pcapsvc.client.status import NoAnswer, NotMeant, Refused
from pcapsvc.core.text import one_line

# An event has its texts from a message of up to 64 KiB, or from servers; this is far above either.
_LONGEST_LINE_BYTES = 16 * 1024 * 1024
# The problem of a node that is not meant: see docs/messages.md.
_NOT_MEANT = "/pcapsvc/problems/not-for-this-node"


class HttpTransport:
    """A node. See L{pcapsvc.client.transport.ITransport}."""

    def __init__(self, api: NodeApi) -> None:
        self._api = api
        self._last_id: str | None = None

    def send(self, body: bytes) -> int | None:
        """
        Post a message.

        @raise Refused: if the node rejects it, or is busy.
        @raise NotMeant: if it is for other nodes.
        """
        try:
            self._api.call("POST", "/captures", body)
        except ApiProblem as problem:
            if problem.document.get("type") == _NOT_MEANT:
                raise NotMeant(f"{self._api.address}: the message is for other nodes") from None
            listed = problem.document.get("problems")
            if not isinstance(listed, list) or not listed:
                raise Refused(str(problem)) from None
            lines = [one_line(_words(each), most=1000) for each in listed]
            raise Refused(f"{self._api.address} rejected it: " + "; ".join(lines)) from None
        return 1

    def events(self, requestid: str | None) -> HttpEvents:
        """
        Open a stream; if one was open before, with what was missed meanwhile.

        @raise Refused: if the node answers with an error.
        """
        headers = {} if self._last_id is None else {"Last-Event-ID": self._last_id}
        try:
            answer = self._api.open(
                "GET", "/events", query={"requestid": requestid}, headers=headers, forever=True
            )
        except ApiProblem as problem:
            raise Refused(str(problem)) from None
        return HttpEvents(self, self._api, answer)

    def seen(self, event_id: str) -> None:
        """Remember the last event."""
        self._last_id = event_id


class HttpEvents:
    """
    Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html). See
    L{pcapsvc.client.transport.IEventStream}.
    """

    def __init__(self, transport: HttpTransport, api: NodeApi, body: Body) -> None:
        self._transport = transport
        self._api = api
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        data, event_id = b"", ""
        while not self._body.is_closed:
            line = self._line().rstrip(b"\r\n")
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if name == b"data":
                data = value
            elif name == b"id":
                event_id = value.decode("ascii", "replace")
            elif not line and data:
                # Before it is passed on: who closes the stream meanwhile has this one.
                self._transport.seen(event_id)
                yield data
                data = b""

    def _line(self) -> bytes:
        line = self._body.line(_LONGEST_LINE_BYTES)
        if not line and not self._body.is_closed:
            raise NoAnswer(f"{self._api.address}: the node closed the connection")
        return line

    def close(self) -> None:
        """End it."""
        self._body.close()


def _words(problem: object) -> str:
    if not isinstance(problem, dict):
        return str(problem)
    value = problem.get("value")
    return f"{problem.get('path')}{'' if value is None else f' = {value}'}: {problem.get('rule')}"
