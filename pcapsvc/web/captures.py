"""C{/captures}: what has been captured, and what is being captured."""

# twisted.web has hardly any types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from twisted.internet.defer import Deferred
from twisted.web.resource import IResource

from pcapsvc.core.role import Role
from pcapsvc.interfaces.captures import CAPTURE_STATES, EndResult
from pcapsvc.net.http_resource import Answer, HTTPProblem, Resource
from pcapsvc.web.json_list import json_list
from pcapsvc.web.pcap_file import PcapFile, Places
from pcapsvc.web.query import Parameters

#: How many captures a list has by default, and at most.
DEFAULT_LIMIT, MOST_LISTED = 100, 1000

#: How long the end of a capture is waited for. It takes as long as the kernel holds packets back.
END_SECONDS = 2.0

_CAPTURE_ID = re.compile(rb"[A-Za-z0-9]{1,64}")


class CaptureList(Resource):
    """
    C{/captures}.

    @param posts: the source's own resource there, which receives requests.
    """

    allowedMethods = (b"GET", b"HEAD", b"POST")
    roles: ClassVar = {b"POST": Role.CAPTURE}

    def __init__(self, posts: IResource, places: Places) -> None:
        super().__init__()
        self._posts = posts
        self._places = places

    def getChild(self, path: bytes, request: Any) -> Resource:
        """See L{Resource.getChild}."""
        if not _CAPTURE_ID.fullmatch(path):
            return super().getChild(path, request)
        return CaptureState(path.decode("ascii"), self._places)

    def render_GET(self, request: Any) -> Answer:
        """The captures, the newest first."""
        with Parameters(request, ("state", "requestid", "limit")) as given:
            wanted = given.choice("state", CAPTURE_STATES)
            requestid = given.text("requestid")
            limit = given.number("limit", 1, MOST_LISTED, DEFAULT_LIMIT)
        ids = self._places.captures.ids(wanted, requestid=requestid, limit=limit)
        return json_list(self._places.reactor, "captures", self._states(ids, wanted))

    def _states(self, ids: Sequence[str], wanted: str | None) -> Iterator[Mapping[str, Any]]:
        """The states of captures by now. Those are left out that are forgotten, or not in the wanted one."""
        for capture_id in ids:
            state = self._places.captures.get(capture_id)
            if state is not None and wanted in (None, state["state"]):
                yield _shown(state, self._places)

    def render_POST(self, request: Any) -> Any:
        """A request for captures."""
        return self._posts.render(request)


class CaptureState(Resource):
    """C{/captures/ID}."""

    allowedMethods = (b"GET", b"HEAD", b"DELETE")
    roles: ClassVar = {b"DELETE": Role.CAPTURE}

    def __init__(self, capture_id: str, places: Places) -> None:
        super().__init__()
        self._capture_id = capture_id
        self._places = places
        self._captures = places.captures

    def getChild(self, path: bytes, request: Any) -> Resource:
        """See L{Resource.getChild}."""
        if path != b"pcap":
            return super().getChild(path, request)
        return PcapFile(self._capture_id, self._places)

    def render_GET(self, request: Any) -> Answer:
        """The state of the capture."""
        return Answer.json(self._state())

    async def render_DELETE(self, request: Any) -> Answer:
        """End the capture now. What it has is delivered."""
        ended: Deferred[None] = Deferred()

        def changed(state: Mapping[str, Any]) -> None:
            if state["id"] == self._capture_id and state["state"] != "capturing" and not ended.called:
                ended.callback(None)

        unsubscribe = self._captures.watch(changed)
        try:
            result = self._captures.end(self._capture_id)
            if result is EndResult.UNKNOWN:
                raise _unknown()
            if result is EndResult.ALREADY_ENDED:
                raise HTTPProblem(409, "This capture has already ended.")
            await ended.addTimeout(END_SECONDS, self._places.reactor, lambda _, __: None)
        finally:
            unsubscribe()
        return Answer.json(self._state())

    def _state(self) -> Mapping[str, Any]:
        state = self._captures.get(self._capture_id)
        if state is None:
            raise _unknown()
        return _shown(state, self._places)


def _shown(state: Mapping[str, Any], places: Places) -> Mapping[str, Any]:
    """The state of a capture, and whether its packets can be fetched here."""
    return {**state, "pcap": places.has(state)}


def _unknown() -> HTTPProblem:
    return HTTPProblem(404, "There is no capture with this id.")
