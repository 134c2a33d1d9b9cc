"""
A URL to which a capture is put, supplied by its request. Its query is a secret: it signs the request.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass  # noqa: TID251 - secrets are left out of its repr
from typing import Annotated, Any
from urllib.parse import parse_qsl, quote

import msgspec
from msgspec import Meta

from pcapsvc.core.allowed_hosts import HostPattern
from pcapsvc.core.errors import Problem
from pcapsvc.core.fields import SECRET, check_fields
from pcapsvc.core.http_url import LONGEST_URL, BadUrl, HttpUrl, parse_http_url

# A part of a path that servers may take for "here" or "up".
_DOTS = re.compile(r"(?i)(?:\.|%2e){1,2}")

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_PLACEHOLDERS = ("node", "interface", "id")
# What a server may take for the end of a part of the path, once it has decoded it.
_ENDS_PART = re.compile(r"[/\\%\x00-\x1f\x7f]|\A\.+")

# The headers whose values we know. A signature over others could not be met.
_SIGNABLE = frozenset({"host", "content-type", "content-length"})
_SIGNED_HEADERS = ("x-amz-signedheaders", "x-goog-signedheaders")
# The signatures of S3 and Google, which cover the path. Those of Azure (sig) may be for all of a container.
_SIGNATURES = frozenset({"x-amz-signature", "x-goog-signature", "signature"})


@dataclass(frozen=True, kw_only=True)
class PutUrl(HttpUrl):
    """The parts of a URL. Its path may have placeholders, and its query is a secret."""

    @property
    def placeholders(self) -> frozenset[str]:
        """The names of the placeholders in the path."""
        return frozenset(_PLACEHOLDER.findall(self.path))

    @property
    def parameters(self) -> Mapping[str, str]:
        """The parameters of the query, by their names in lower case."""
        pairs = parse_qsl(self.query or "", keep_blank_values=True, max_num_fields=LONGEST_URL)
        return {name.lower(): value for name, value in pairs}

    def filled_path(self, **values: str) -> str:
        """
        The path, with its placeholders filled in. All else is as it was written.

        @param values: by the names of the placeholders. Nothing in them can end a part of the path.
        """

        def filled(found: re.Match[str]) -> str:
            value = _ENDS_PART.sub(lambda part: "_" * len(part[0]), values[found[1]])
            return quote(value, safe="", errors="replace") or "_"

        return _PLACEHOLDER.sub(filled, self.path)


class PutUrlOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The field of a request."""

    puturl: (
        Annotated[
            str,
            Meta(
                max_length=LONGEST_URL,
                pattern=r"\A[\x21-\x7e]*\Z",
                description=f"a URL in ASCII of up to {LONGEST_URL} characters, without spaces",
                extra=SECRET,
            ),
        ]
        | None
    ) = None


def parse_put_url(text: str) -> PutUrl:
    """
    Take a URL apart.

    @raise BadUrl: if it is not one to which a capture can be put.
    """
    url = parse_http_url(text)
    _check_path(url.path)
    return PutUrl(scheme=url.scheme, host=url.host, port=url.port, path=url.path, query=url.query)


def _check_path(path: str) -> None:
    if path.endswith("/") or not path:
        raise BadUrl("must have a path that names a file")
    rest = _PLACEHOLDER.sub("", path)
    if "{" in rest or "}" in rest or not {*_PLACEHOLDER.findall(path)} <= {*_PLACEHOLDERS}:
        raise BadUrl("may have the placeholders {node}, {interface} and {id} in its path, and no others")
    if any(_DOTS.fullmatch(part) for part in path.split("/")):
        raise BadUrl("must have no part of its path that is '.' or '..'")


def put_url_problems(
    options: Mapping[str, Any],
    *,
    patterns: Sequence[HostPattern] | None = None,
    insecure: bool = True,
) -> Iterator[Problem]:
    """
    Everything that is wrong with the URL of a request, if it has one. No problem shows any of it.

    @param options: by the request's field.
    @param patterns: the hosts that it may name; L{None} for any, which only a client may say.
    @param insecure: whether it may be one of http.
    """
    values, problems = check_fields(PutUrlOptions, options)
    yield from problems
    if not values.get("puturl"):
        return
    for rule in _rules_broken(values["puturl"], patterns, insecure):
        yield Problem(path="puturl", rule=rule)


def _rules_broken(text: str, patterns: Sequence[HostPattern] | None, insecure: bool) -> Iterator[str]:
    if patterns is not None and not patterns:
        yield "can't be used on this node: puturl.allow is empty"
        return
    try:
        url = parse_put_url(text)
    except BadUrl as error:
        yield str(error)
        return
    if url.scheme == "http" and not insecure:
        yield "must begin with https:// on this node"
    if patterns is not None and matching(url, patterns) is None:
        yield f"must name a host and port that puturl.allow has on this node: {', '.join(map(str, patterns))}"
    if url.placeholders and _SIGNATURES & url.parameters.keys():
        yield "must have no placeholders: its signature covers the path as well"
    if others := signed_headers(url) - _SIGNABLE:
        listed = ", ".join(sorted(others)[:5])
        yield (
            f"is signed for headers that are not sent ({_word(listed)}): sign none but host, content-type and"
            " content-length"
        )


def matching(url: PutUrl, patterns: Sequence[HostPattern]) -> HostPattern | None:
    """The first pattern that matches a URL; L{None} if none does."""
    return next((each for each in patterns if each.matches(url.host, url.port, url.scheme)), None)


def signed_headers(url: PutUrl) -> frozenset[str]:
    """The headers that the signature of a URL says it covers, in lower case (SigV4, and Google's V4)."""
    parameters = url.parameters
    named = ";".join(parameters.get(name, "") for name in _SIGNED_HEADERS)
    return frozenset(filter(None, named.lower().split(";")))


def _word(text: str) -> str:
    """Names of headers, and nothing else that a query may have in their place."""
    return text if re.fullmatch(r"[a-z0-9-]{1,40}(?:, [a-z0-9-]{1,40}){0,4}", text) else "…"


def several_captures_problem(options: Mapping[str, Any], interfaces: int) -> Iterator[Problem]:
    """
    The problem that the captures of one request would replace each other.

    @param interfaces: on how many interfaces the request captures.
    """
    try:
        url = parse_put_url(options.get("puturl") or "")
    except BadUrl:
        return
    if interfaces > 1 and not url.placeholders & {"interface", "id"}:
        yield Problem(
            path="puturl",
            rule="must have {interface} or {id} in its path if there are several interfaces: each capture"
            " would replace the one before",
        )
