"""Captures to URLs that requests supply, by PUT."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from zope.interface import implementer

from pcapsvc.core.allowed_hosts import HostPattern, is_allowed_address
from pcapsvc.core.artifact import Artifact
from pcapsvc.core.errors import DestinationError, Problem
from pcapsvc.core.http_url import BadUrl
from pcapsvc.core.mask import SHORT_SECRET
from pcapsvc.core.put_url import PutUrl, matching, parse_put_url, put_url_problems, signed_headers
from pcapsvc.core.result import Receipt
from pcapsvc.core.text import one_line
from pcapsvc.destinations.puturl.answer import check_answer
from pcapsvc.interfaces.delivery import IDestination
from pcapsvc.interfaces.threads import RunInThread
from pcapsvc.net.checked_endpoint import AddressRefused, checked_endpoint
from pcapsvc.net.file_body import FileBody
from pcapsvc.net.http_client import Response, exchange, failure_words, secured
from pcapsvc.net.names import ReactorWithResolver, ThreadedResolver

# What queries have that are shared access signatures of Azure ("Create a service SAS").
_AZURE = frozenset({"sv", "sig"})
# The older signatures of S3 and Google cover the type, which we can't know, and so sign none.
_OLDER_SIGNATURE = "signature"


@implementer(IDestination)
class PutUrlDestination:
    """
    Puts each capture to the URL of its request, if it has one, on a connection of its own.

    The name is looked up once. Every address must be public, or named by a pattern; the connection goes to
    one of them. Redirects are not followed, and no proxy is used.

    A capture is delivered if L{check_answer} says so. Retryable: connection errors, names that are not found,
    time-outs, redirects, answers that may pass (L{pcapsvc.core.http_status}), and successes without proof.
    Not retryable: any other answer, such as that the URL has expired; an address that is refused; a
    certificate that can't be verified.

    @param run_in_thread: for captures and certificates, whose disk may hang.
    @param look_up_in_thread: looks up the hosts of a pattern, by its text. Their name servers are strangers,
        too, and may let each look-up wait: then those of others must not. Without it, the reactor looks them
        up.
    @param patterns: the hosts that requests may name, one or more. Each has slots of its own.
    @param insecure: whether they may name URLs of http.
    @param ca_file: the path of the PEM certificates to verify servers with; L{None} is the platform's.
    @param node: the name of this node.
    """

    name = "puturl"

    def __init__(
        self,
        reactor: Any,
        *,
        run_in_thread: RunInThread,
        look_up_in_thread: Mapping[str, RunInThread] | None = None,
        patterns: Sequence[HostPattern],
        insecure: bool,
        ca_file: str | None,
        node: str,
    ) -> None:
        self._reactor = reactor
        self._run_in_thread = run_in_thread
        self._patterns = tuple(patterns)
        self._insecure = insecure
        self._ca_file = ca_file
        self._node = node
        self.routes = tuple(dict.fromkeys(pattern.text for pattern in patterns))
        self._reactors = {
            route: ReactorWithResolver(reactor, ThreadedResolver(run))
            for route, run in (look_up_in_thread or {}).items()
        }

    def route(self, options: Mapping[str, Any]) -> str | None:
        """See L{IDestination.route}. It is the text of the first pattern that matches."""
        text = options.get("puturl")
        if not text:
            return None
        try:
            pattern = matching(parse_put_url(text), self._patterns) if isinstance(text, str) else None
        except BadUrl:
            pattern = None
        return self.routes[0] if pattern is None else pattern.text

    def check(self, options: Mapping[str, Any]) -> Iterator[Problem]:
        """See L{IDestination.check}."""
        return put_url_problems(options, patterns=self._patterns, insecure=self._insecure)

    def store(self, artifact: Artifact) -> Deferred[Receipt]:
        """See L{IDestination.store}. The receipt's location is the URL without its query."""
        return Deferred.fromCoroutine(self._store(artifact))

    async def _store(self, artifact: Artifact) -> Receipt:
        url = parse_put_url(artifact.options[self.name]["puturl"])
        base = url.base
        path = url.filled_path(
            node=self._node, interface=artifact.labels.interface or "", id=artifact.capture_id
        )
        try:
            await self._put(url, path, artifact)
        except DestinationError as error:
            raise error.at(base) from None
        except AddressRefused:
            raise DestinationError(
                f"{base}: the host has an address that is not public, and that puturl.allow doesn't name",
                retryable=False,
            ) from None
        except CancelledError:
            raise CancelledError() from None
        except Exception as error:  # noqa: BLE001 - what an HTTP client raises may show what it was given
            words, retryable = failure_words(error, str(url.host))
            raise DestinationError(f"{base}: {_without(url, words)}", retryable=retryable) from None
        return Receipt(destination=self.name, location=f"{base}{path}")

    async def _put(self, url: PutUrl, path: str, artifact: Artifact) -> None:
        """
        Put a capture.

        @raise Exception: whatever goes wrong.
        """
        endpoint = await secured(
            await checked_endpoint(
                self._reactors.get(self.route(artifact.options[self.name]) or "", self._reactor),
                url.host,
                url.port,
                partial(is_allowed_address, self._patterns, port=url.port, scheme=url.scheme),
            ),
            url.scheme,
            str(url.host),
            self._ca_file or True,
            self._run_in_thread,
        )
        digest = hashlib.md5(usedforsecurity=False)
        body = FileBody(artifact.content.open(), artifact.content.size, self._run_in_thread, digest)
        try:
            response: Response = await exchange(
                self._reactor,
                endpoint,
                "PUT",
                f"{url.base}/",
                headers_of(url, artifact.media_type),
                body,
                target=url.target(path),
            )
        finally:
            body.stopProducing()
            body.close()
        check_answer(response, md5=digest.digest(), has_sent_all=body.has_sent_all)


def headers_of(url: PutUrl, media_type: str) -> dict[str, str]:
    """
    The headers that are sent, beside C{Content-Length} and C{Connection}: always the same for a URL, as some
    of them may be signed.
    """
    # Twisted's agent gets IPv6 addresses wrong.
    headers = {"Host": url.authority}
    if _OLDER_SIGNATURE not in url.parameters or "content-type" in signed_headers(url):
        headers["Content-Type"] = media_type
    if url.parameters.keys() >= _AZURE:
        headers["x-ms-blob-type"] = "BlockBlob"
    return headers


def _without(url: PutUrl, words: str) -> str:
    """What a library says, on one line, if nothing of the query is in it."""
    line = one_line(words)
    plain = line.casefold()
    # Short ones are words, such as the names of headers.
    values = (value.casefold() for value in url.parameters.values() if len(value) >= SHORT_SECRET)
    return "the connection failed" if any(value in plain for value in values) else line
