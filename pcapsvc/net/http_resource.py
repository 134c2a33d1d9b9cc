"""
What an HTTP server answers: resources in a tree, JSON, and errors as problem details.

The tree is Twisted's (L{twisted.web.resource}), so that its resources, and those of libraries for it, can be
put into it as they are. Ours differ in two ways: they return an L{Answer}, or a Deferred of one; and an error
is an L{HTTPProblem}, never a page of HTML.
"""

# twisted.web has hardly any types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, ClassVar

import msgspec
from twisted.web import http, resource
from twisted.web.error import UnsupportedMethod
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer

from pcapsvc.core.role import Role

#: The media type of problem details (RFC 9457, section 3).
PROBLEM_JSON = "application/problem+json"


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """
    An answer.

    @ivar status: the HTTP status code.
    @ivar body: the content; or what produces it piece by piece, as fast as the client reads. That is always
        stopped in the end, even if it was never started or has ended, and perhaps more than once. If it can't
        go on, it fails with L{AnswerCut}.
    @ivar headers: more than those about the content.
    """

    status: int = 200
    media_type: str
    body: bytes | IBodyProducer
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)

    @classmethod
    def json(
        cls, content: Mapping[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """
        An answer in JSON.

        @raise ValueError: if C{content} can't be put in JSON.
        """
        return cls(
            status=status, media_type="application/json", body=_json(content), headers=dict(headers or {})
        )

    def all_headers(self) -> dict[str, str]:
        """The headers of the answer, with those about its content."""
        length = len(self.body) if isinstance(self.body, bytes) else self.body.length
        return {
            "Date": http.datetimeToString().decode("ascii"),
            "Cache-Control": "no-store",
            "Content-Type": self.media_type,
            # A browser must not take text that a request or a server has sent for HTML.
            "X-Content-Type-Options": "nosniff",
            **({} if length == UNKNOWN_LENGTH else {"Content-Length": str(length)}),
            **self.headers,
        }


class AnswerCut(Exception):
    """The rest of an answer can't be sent. The client learns that it is not whole."""


class HTTPProblem(Exception):
    """
    An error that a client gets as problem details (RFC 9457).

    @ivar status: the HTTP status code.
    @ivar detail: what went wrong, for a person.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        type: str = "about:blank",
        title: str | None = None,
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        """
        @param type: a stable URI reference of the kind of problem. C{about:blank} is one that the status says
            enough about.
        @param title: the kind of problem, for a person; L{None} is the status in words.
        @param headers: of the answer.
        @param members: more members of the problem details.
        """
        super().__init__(status, detail)
        self.status = status
        self.detail = detail
        self._type = type
        self._title = title or HTTPStatus(status).phrase
        self._headers = dict(headers or {})
        self._members = members

    def answer(self) -> Answer:
        """The answer that says so."""
        content = {"type": self._type, "title": self._title, "status": self.status, "detail": self.detail}
        return Answer(
            status=self.status,
            media_type=PROBLEM_JSON,
            body=_json({**content, **self._members}),
            headers=self._headers,
        )


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, allow_nan=False).encode() + b"\n"


class Resource(resource.Resource):
    """
    A node of the tree. A request finds its resource before it is admitted, so C{getChild} must be quick, and
    neither wait nor change anything.

    A subclass sets C{allowedMethods}, and has a method C{render_METHOD} for each, which
    takes the request, and may be a coroutine. It returns

      - an L{Answer}, or a Deferred that fires with one;
      - L{None}, or a Deferred of that, after it has written the whole answer to the request, which is an
        L{IConsumer<twisted.internet.interfaces.IConsumer>}: a stream registers a producer there;

    or raises L{HTTPProblem}. A client that disconnects cancels nothing. Whoever wants to know asks
    C{request.notifyFinish()}.

    @cvar is_public: whether everyone may have it by GET and HEAD, without a token. Strangers are served last.
    @cvar roles: by method, the role that a client needs; L{Role.READ} for those that aren't listed.
    """

    allowedMethods: Sequence[bytes] = ()
    is_public: ClassVar[bool] = False
    roles: ClassVar[Mapping[bytes, Role]] = {}

    def getChild(self, path: bytes, request: Any) -> Resource:
        """
        See L{twisted.web.resource.Resource.getChild}.

        @raise HTTPProblem: this resource has no such child.
        """
        raise HTTPProblem(404, "There is no resource at this path.")

    def render(self, request: Any) -> Any:
        """
        See L{twisted.web.resource.Resource.render}.

        @raise UnsupportedMethod: if the method is not among C{allowedMethods}.
        """
        if request.method not in self.allowedMethods:
            raise UnsupportedMethod(self.allowedMethods)
        return super().render(request)
