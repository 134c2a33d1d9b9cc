"""Captures, or events about them, to an HTTP endpoint, by POST."""

from __future__ import annotations

import hashlib
import hmac
import io
from collections.abc import Callable, Mapping
from functools import partial
from http.client import responses
from typing import Any, BinaryIO

from twisted.internet.defer import CancelledError, Deferred
from zope.interface import implementer

from pcapsvc.core.artifact import Artifact
from pcapsvc.core.errors import DestinationError
from pcapsvc.core.event import CaptureFile, EventFactory
from pcapsvc.core.header_text import header_text
from pcapsvc.core.http_url import HttpUrl
from pcapsvc.core.no_options import WithoutOptions
from pcapsvc.core.result import Receipt
from pcapsvc.core.text import one_line
from pcapsvc.interfaces.delivery import IDestination
from pcapsvc.interfaces.threads import RunInThread
from pcapsvc.net.file_body import FileBody
from pcapsvc.net.http_client import Response, exchange, failure_words, server_endpoint
from pcapsvc.threads import NotRunning

_EVENT_MEDIA_TYPE = "application/cloudevents+json; charset=utf-8"
_CHUNK_BYTES = 256 * 1024

# What says that a request with this key is being worked on: it passes, too.
_CONFLICT = 409


@implementer(IDestination)
class Webhook(WithoutOptions):
    """
    Posts each capture, or an event about it, on a connection of its own. Redirects are not followed.

    The header C{Idempotency-Key} is the same for each attempt, also after a restart, and so is the body. The
    header C{X-Pcapsvc-Signature-256} is the HMAC-SHA256 of the body (RFC 2104), if there is a secret.

    Delivered: any answer of 2xx to a whole body. Retryable: connection errors, time-outs, redirects, 409
    and answers that may pass (L{pcapsvc.core.http_status}). Not retryable: any other answer, and a
    certificate that can't be verified.

    @param run_in_thread: for captures and certificates, whose disk may hang, and for signatures.
    @param sends_captures: whether captures are posted, and not events.
    @param events: makes these.
    @param node: the name of this node.
    @param secret: what bodies are signed with; L{None} if they aren't.
    @param headers: those that are sent beside ours.
    @param verify: whether the server's certificate is verified; or the path of the PEM file with the
        certificates to verify it with, which is read for each attempt.
    """

    name = "webhook"

    def __init__(
        self,
        reactor: Any,
        *,
        run_in_thread: RunInThread,
        url: HttpUrl,
        sends_captures: bool,
        events: EventFactory,
        node: str,
        secret: str | None = None,
        headers: Mapping[str, str],
        verify: bool | str = True,
    ) -> None:
        self._reactor = reactor
        self._run_in_thread = run_in_thread
        self._url = url
        self._sends_captures = sends_captures
        self._events = events
        self._node = node
        self._key = None if secret is None else secret.encode("utf-8", "surrogateescape")
        self._headers = dict(headers)
        self._verify = verify

    def store(self, artifact: Artifact) -> Deferred[Receipt]:
        """See L{IDestination.store}. The receipt's location is the server: the path may be a secret."""
        return Deferred.fromCoroutine(self._store(artifact))

    async def _store(self, artifact: Artifact) -> Receipt:
        base = self._url.base
        try:
            if self._sends_captures:
                await self._post_capture(artifact)
            else:
                await self._post_event(artifact)
        except DestinationError as error:
            raise error.at(base) from None
        except CancelledError:
            raise CancelledError() from None
        except Exception as error:  # noqa: BLE001 - what an HTTP client raises may show what it was given
            words, retryable = failure_words(error, str(self._url.host))
            raise DestinationError(f"{base}: {one_line(words)}", retryable=retryable) from None
        return Receipt(destination=self.name, location=base)

    async def _post_capture(self, artifact: Artifact) -> None:
        headers = {
            "Content-Type": artifact.media_type,
            "Content-Disposition": f'attachment; filename="{artifact.name}"',
            "X-Pcapsvc-Capture": artifact.capture_id,
            "X-Pcapsvc-Node": header_text(self._node),
            "X-Pcapsvc-Interface": header_text(artifact.labels.interface or ""),
            "X-Pcapsvc-Tags": header_text(artifact.tags),
        }
        await self._post(artifact, artifact.content.open, artifact.content.size, headers)

    async def _post_event(self, artifact: Artifact) -> None:
        event = self._events.event(
            CaptureFile(file=artifact.name, media_type=artifact.media_type, bytes=artifact.content.size),
            artifact.labels,
            artifact.capture_id,
            id=self._key_of(artifact),
            # Not that of the attempt: the event is to be the same each time.
            time=artifact.started or 0.0,
        )
        headers = {"Content-Type": _EVENT_MEDIA_TYPE}
        await self._post(artifact, partial(io.BytesIO, event.json), len(event.json), headers)

    async def _post(
        self,
        artifact: Artifact,
        open_file: Callable[[], BinaryIO],
        size: int,
        headers: Mapping[str, str],
    ) -> None:
        """
        Post a file.

        @param open_file: makes a reader of it.

        @raise Exception: whatever goes wrong.
        """
        body = FileBody(open_file(), size, self._run_in_thread)
        try:
            sent = {
                **self._headers,
                **headers,
                # Twisted's agent gets IPv6 addresses wrong.
                "Host": self._url.authority,
                "Idempotency-Key": self._key_of(artifact),
            }
            if self._key is not None:
                signature = await self._signature(self._key, open_file())
                sent["X-Pcapsvc-Signature-256"] = f"sha256={signature}"
            response = await exchange(
                self._reactor,
                await server_endpoint(
                    self._reactor,
                    self._url.scheme,
                    str(self._url.host),
                    self._url.port,
                    self._verify,
                    self._run_in_thread,
                ),
                "POST",
                f"{self._url.base}/",
                sent,
                body,
                target=self._url.target(self._url.path or "/"),
            )
        finally:
            body.stopProducing()
            body.close()
        _check(response, has_sent_all=body.has_sent_all)

    async def _signature(self, key: bytes, file: BinaryIO) -> str:
        try:
            signature: str = await self._run_in_thread(_signature, key, file)
            return signature
        except NotRunning:
            # Otherwise a thread closes it, even if nobody waits for that any more.
            file.close()
            raise

    def _key_of(self, artifact: Artifact) -> str:
        return f"{artifact.capture_id}-{self.name}"


def _signature(key: bytes, file: BinaryIO) -> str:
    """The signature of a file, which is closed. In hexadecimal digits."""
    signing = hmac.new(key, digestmod=hashlib.sha256)
    with file:
        while chunk := file.read(_CHUNK_BYTES):
            signing.update(chunk)
    return signing.hexdigest()


def _check(response: Response, *, has_sent_all: bool) -> None:
    """
    Check that a server has accepted what was sent.

    @raise DestinationError: if it hasn't. Nothing that the server says is repeated: it may repeat packets.
    """
    code = response.code
    if 200 <= code < 300:
        if not has_sent_all:
            raise DestinationError(f"answered {code} before it had everything", retryable=True)
        return
    if 300 <= code < 400:
        words, passes = "a redirect, which is not followed", True
    else:
        words = responses.get(code, "a status that is not known")
        passes = code == _CONFLICT or response.is_passing_error
    raise DestinationError(
        f"answered {code}: {words}", retryable=passes, retry_after_seconds=response.asked_seconds
    )
