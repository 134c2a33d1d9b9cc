"""Captures to Amazon S3, and to services that speak its protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from zope.interface import implementer

from pcapsvc.core.artifact import Artifact
from pcapsvc.core.endpoint import EndpointError, endpoint_url
from pcapsvc.core.errors import DestinationError, Problem
from pcapsvc.core.folder import folder_of
from pcapsvc.core.result import Receipt
from pcapsvc.core.text import one_line
from pcapsvc.destinations.s3.clients import Body, Clients, Target
from pcapsvc.destinations.s3.multipart import Sizes
from pcapsvc.destinations.s3.options import S3_FIELDS, check_options
from pcapsvc.generated_file import GeneratedFile
from pcapsvc.interfaces.delivery import IDestination
from pcapsvc.interfaces.threads import RunInThread

SIZES = Sizes()

# The routes. An endpoint that a request names has slots and threads of its own.
_CONFIGURED, _ELSEWHERE = "configured", "elsewhere"


@implementer(IDestination)
class S3:
    """
    Puts captures as C{FOLDER/NAME}, or as C{NAME} if there is no folder, with the tags as the
    metadata C{tags}. What a request says of S3 overrides what is configured.

    Each capture is one PutObject, which S3 accepts up to 5 GB, or, if it is larger than 100 MB, an upload in
    parts of 16 MiB. If such an upload fails, its parts are removed, or, if the service can't be reached then,
    by the next attempt.

    The ACL C{private} is never sent. It is what an object has anyway, and buckets with ACLs
    disabled, the default for new ones, refuse any.

    A capture is delivered if the service proves that it has it: by the MD5 in the C{ETag}, or by a valid
    C{ETag} if the answer says that KMS encrypts; that of an upload in parts by what is made of the MD5s of
    these. Otherwise HeadObject must find the same C{ETag} and size.

    Retryable: connection errors, time-outs, throttling, answers that may pass (L{pcapsvc.core.http_status}),
    and redirects and successes that are not the service's, but for example a captive portal's. Not retryable:
    any other answer, missing credentials, a certificate that can't be verified.

    Each attempt has its own connection, which is closed with it. Cancelling an attempt closes the
    connection at once and frees the thread, unless that is waiting for DNS.

    @param run_in_thread: for requests to the configured endpoint.
    @param run_elsewhere: for requests to other endpoints: one that hangs must not use up the
        threads for the configured one.
    @param access_id: together with C{access_key}, the credentials. Without them, they come from
        where Amazon's tools look: the environment, a profile, a role. They are looked up again
        after an attempt that found none, or whose credentials the configured endpoint refused.
    @param access_key: the secret. It is in no error and no log.
    @param endpoint: the address of the service, with or without a scheme; L{None} is Amazon's.
    @param acl: one of L{pcapsvc.destinations.s3.options.CANNED_ACLS}.
    @param folder: may have placeholders: see L{pcapsvc.core.folder}.
    @param encryption: whether S3 encrypts the object (AES256).
    @param storage_class: one of L{pcapsvc.destinations.s3.options.STORAGE_CLASSES}; L{None} is the usual one.
    @param kms_key_id: the key with which KMS encrypts the object, whatever C{encryption} is.
    @param overrides: the fields that a request may set.
    @param endpoints: the endpoints (as URLs) that a request may name; empty for any.
    """

    name = "s3"
    routes = (_CONFIGURED, _ELSEWHERE)

    def __init__(
        self,
        *,
        run_in_thread: RunInThread,
        run_elsewhere: RunInThread,
        access_id: str | None = None,
        access_key: str | None = None,
        endpoint: str | None = None,
        bucket: str | None = None,
        folder: str | None = None,
        region: str | None = None,
        acl: str = "private",
        encryption: bool = False,
        storage_class: str | None = None,
        kms_key_id: str | None = None,
        overrides: frozenset[str] = frozenset(S3_FIELDS),
        endpoints: tuple[str, ...] = (),
        sizes: Sizes = SIZES,
    ) -> None:
        self._secrets = () if access_key is None else ((access_key, "[access key]"),)
        # Separate, so that no request can evict the clients of the others.
        self._own = (run_in_thread, Clients(access_id, access_key, sizes))
        self._elsewhere = (run_elsewhere, Clients(access_id, access_key, sizes))
        self._overrides = overrides
        self._endpoints = endpoints
        self._defaults: Mapping[str, Any] = {
            "endpoint": endpoint,
            "bucket": bucket,
            "folder": folder,
            "region": region,
            "acl": acl,
            "encryption": encryption,
            "storageclass": storage_class,
            "kmskeyid": kms_key_id,
        }

    def route(self, options: Mapping[str, Any]) -> str:
        """See L{IDestination.route}. One is for the configured endpoint, the other for all others."""
        if "endpoint" not in options:
            return _CONFIGURED
        endpoint = options["endpoint"]
        try:
            is_configured = isinstance(endpoint, str) and _url(endpoint) == _url(self._defaults["endpoint"])
        except EndpointError:
            return _ELSEWHERE
        return _CONFIGURED if is_configured else _ELSEWHERE

    def check(self, options: Mapping[str, Any]) -> Iterator[Problem]:
        """See L{IDestination.check}."""
        return check_options(options, allowed=self._overrides, endpoints=self._endpoints)

    def store(self, artifact: Artifact) -> Deferred[Receipt]:
        """See L{IDestination.store}. The receipt's location is C{s3://BUCKET/KEY}."""
        return Deferred.fromCoroutine(self._store(artifact))

    async def _store(self, artifact: Artifact) -> Receipt:
        target = self._target(artifact)
        location = f"s3://{target.bucket}/{target.key}"
        run_in_thread, clients = self._own if target.is_configured else self._elsewhere
        try:
            # Not in the thread: by the time it runs, the content may be closed.
            content = artifact.content
            body = Body(content.open(), content.size, is_made=isinstance(content, GeneratedFile))
            try:
                put = partial(clients.put, may_be_there=artifact.may_be_there)
                await run_in_thread(put, target, body, artifact.media_type, artifact.tags)
            except CancelledError:
                # The thread notices and closes it.
                body.cancel()
                raise
            except BaseException:
                body.close()
                raise
        except CancelledError:
            raise
        except DestinationError as error:
            raise DestinationError(
                f"{location}: {one_line(str(error), secrets=self._secrets)}",
                retryable=error.retryable,
                retry_after_seconds=error.retry_after_seconds,
            ) from None
        except Exception as error:
            # No memory, no descriptor, or threads that have stopped.
            raise DestinationError(f"{location}: {error}", retryable=True) from error
        return Receipt(destination=self.name, location=location)

    def _target(self, artifact: Artifact) -> Target:
        options = artifact.options.get(self.name, {})
        asked = {**self._defaults, **options}
        if not asked["bucket"]:
            raise DestinationError(
                "no bucket: neither the configuration nor the request names one", retryable=False
            )
        try:
            endpoint = _url(asked["endpoint"])
        except EndpointError as error:
            raise DestinationError(f"the endpoint {error}", retryable=False) from error
        folder = folder_of(asked["folder"] or "", artifact).strip("/")
        return Target(
            endpoint=endpoint,
            is_configured=self.route(options) == _CONFIGURED,
            region=asked["region"] or None,
            bucket=asked["bucket"],
            key=f"{folder}/{artifact.name}" if folder else artifact.name,
            acl=asked["acl"],
            encryption=asked["encryption"],
            storage_class=asked["storageclass"] or None,
            kms_key_id=asked["kmskeyid"] or None,
        )


def _url(endpoint: str | None) -> str | None:
    """The URL of an endpoint; L{None} is Amazon's."""
    return endpoint_url(endpoint) if endpoint else None
