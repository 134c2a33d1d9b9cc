"""Objects to S3: which, where to, and what went wrong."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from twisted.internet.defer import CancelledError, Deferred
from zope.interface import implementer

from pcapsvc.core.artifact import Artifact
from pcapsvc.core.endpoint import EndpointError, endpoint_url
from pcapsvc.core.errors import DestinationError
from pcapsvc.core.request import s3_rules_broken
from pcapsvc.core.result import Receipt
from pcapsvc.core.retry import asked_delay
from pcapsvc.core.text import one_line
from pcapsvc.core.values import S3_FIELDS
from pcapsvc.interfaces.delivery import IDestination
from pcapsvc.interfaces.threads import RunInThread

_CONNECT_SECONDS = 10
_READ_SECONDS = 60
# The next is the delivery's, when the service wants it, on a connection of its own.
_ATTEMPTS = 1
# Each costs a few megabytes.
_MOST_CLIENTS = 8

# The IANA's registry of media types.
_MEDIA_TYPE = "application/vnd.tcpdump.pcap"

_TAGS = "tags"
# S3 User Guide, "User-defined object metadata": 2 KB of names and values.
_MOST_TAGS_BYTES = 2048 - len(_TAGS)
# What a header can't carry, what its end loses, and the sign of the encoding itself.
_UNSAFE = re.compile(r"[^\x20-\x24\x26-\x7e]|\A +| +\Z")

# S3 API Reference, "List of error codes": what was right once, and is not any more.
_STALE_CODES = frozenset({"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch"})

# Those of botocore's standard retry mode (botocore.retries.standard), and S3's own.
_PASSING_CODES = frozenset(
    {
        "BandwidthLimitExceeded",
        "EC2ThrottledException",
        "InternalError",
        "LimitExceededException",
        "OperationAborted",
        "PriorRequestNotComplete",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "RequestTimeout",
        "RequestTimeTooSkewed",
        "RequestTimeoutException",
        "ServiceUnavailable",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
        "TransactionInProgressException",
    }
)


# The ways: what goes to an endpoint that its request names has places and threads of its own.
_CONFIGURED, _ELSEWHERE = "configured", "elsewhere"


@dataclass(frozen=True, kw_only=True)
class _Target:
    """
    Where an object goes, and how.

    @ivar is_configured: whether the endpoint is the one that is configured.
    """

    endpoint: str | None
    is_configured: bool
    region: str | None
    bucket: str
    key: str
    acl: str
    encryption: bool


@implementer(IDestination)
class S3:
    """
    Puts captures as C{FOLDER/NAME}, or C{NAME} where there is no folder, with the tags
    as the metadata C{tags}. What a request says of S3 goes before what is given here.

    An object is put at once, which S3 takes up to 5 GB: a capture's bytes are in memory,
    and bounded far below.

    The ACL C{private} is what an object has that is put with none, and is not sent:
    buckets whose ACLs are switched off, as new ones are, refuse any.

    Retryable are what fails on the way, time-outs, throttling, and the answers 408, 429
    and 5xx; not any other answer, missing credentials, nor a certificate that can't be
    verified.

    Each attempt has a connection of its own, which ends with it; on cancel, at once, and
    the thread with it, save where it waits for the name of a host.

    @param run_in_thread: for what goes to the endpoint that is configured.
    @param run_elsewhere: for what goes to those that requests name: who names one
        that hangs takes no threads of the others.
    @param access_id: with C{access_key}, the credentials. Without, they are looked for
        where Amazon's tools do: the environment, a profile, a role; and again, after an
        attempt that found none, or such as the configured endpoint refused.
    @param access_key: the secret; it is in no error and no log.
    @param endpoint: the service's address, with or without its scheme; L{None} is Amazon's.
    @param acl: one of L{pcapsvc.core.values.CANNED_ACLS}.
    @param encryption: whether S3 keeps the object encrypted, by AES256.
    @param overrides: what requests may say of S3, by field; L{None} is all of it. They were asked
        for it when they came: one that has waited in the spool may have come before it was so.
    @param endpoints: the endpoints (as URLs) that they may name; empty for any.
    """

    name = "s3"
    ways = (_CONFIGURED, _ELSEWHERE)

    def __init__(
        self,
        run_in_thread: RunInThread,
        run_elsewhere: RunInThread,
        *,
        access_id: str | None = None,
        access_key: str | None = None,
        endpoint: str | None = None,
        bucket: str | None = None,
        folder: str | None = None,
        region: str | None = None,
        acl: str = "private",
        encryption: bool = False,
        overrides: frozenset[str] | None = None,
        endpoints: tuple[str, ...] = (),
    ) -> None:
        self._secrets = () if access_key is None else ((access_key, "[access key]"),)
        # Apart, so that no request ends what is kept for the others.
        self._own = (run_in_thread, _Clients(access_id, access_key))
        self._elsewhere = (run_elsewhere, _Clients(access_id, access_key))
        self._overrides = frozenset(S3_FIELDS) if overrides is None else overrides
        self._endpoints = endpoints
        self._defaults: Mapping[str, Any] = {
            "endpoint": endpoint,
            "bucket": bucket,
            "folder": folder,
            "region": region,
            "acl": acl,
            "encryption": encryption,
        }

    def way(self, s3: Mapping[str, Any]) -> str:
        """See L{IDestination.way}: to the endpoint that is configured, whoever names it, or to any other."""
        if "endpoint" not in s3:
            return _CONFIGURED
        try:
            is_configured = _url(s3["endpoint"]) == _url(self._defaults["endpoint"])
        except EndpointError:
            return _ELSEWHERE
        return _CONFIGURED if is_configured else _ELSEWHERE

    def store(self, artifact: Artifact) -> Deferred[Receipt]:
        """See L{IDestination.store}. The receipt's location is C{s3://BUCKET/KEY}."""
        return Deferred.fromCoroutine(self._store(artifact))

    async def _store(self, artifact: Artifact) -> Receipt:
        target = self._target(artifact)
        location = f"s3://{target.bucket}/{target.key}"
        run_in_thread, clients = self._own if target.is_configured else self._elsewhere
        try:
            # Here, not in the thread: by the time that it runs, the content may have been let go of.
            body = _Body(artifact.content.open(), artifact.content.size)
            try:
                await run_in_thread(clients.put, target, body, artifact.tags)
            except CancelledError:
                # The thread notices, and closes it.
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

    def _target(self, artifact: Artifact) -> _Target:
        for problem in s3_rules_broken(artifact.s3, self._overrides, self._endpoints):
            raise DestinationError(f"the request's {problem}", retryable=False)
        asked = {**self._defaults, **artifact.s3}
        if not asked["bucket"]:
            raise DestinationError(
                "no bucket: neither the configuration nor the request names one", retryable=False
            )
        try:
            endpoint = _url(asked["endpoint"])
        except EndpointError as error:
            raise DestinationError(f"the endpoint {error}", retryable=False) from error
        folder = (asked["folder"] or "").strip("/")
        return _Target(
            endpoint=endpoint,
            is_configured=self.way(artifact.s3) == _CONFIGURED,
            region=asked["region"] or None,
            bucket=asked["bucket"],
            key=f"{folder}/{artifact.name}" if folder else artifact.name,
            acl=asked["acl"],
            encryption=asked["encryption"],
        )


def _url(endpoint: str | None) -> str | None:
    """The URL of an endpoint; L{None} is Amazon's."""
    return endpoint_url(endpoint) if endpoint else None


class _Body:
    """What boto3 reads an object from: a file, until nobody waits for the attempt any more."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self.size = size
        self._lock = threading.Lock()
        self._is_cancelled = False
        self._cut: Callable[[], None] | None = None

    def cancel(self) -> None:
        """End the attempt, from the reactor's thread."""
        with self._lock:
            self._is_cancelled = True
            if self._cut is not None:
                self._cut()

    def begin(self, cut: Callable[[], None]) -> None:
        """
        Say how to end the attempt, once it begins.

        @raise CancelledError: it was ended before.
        """
        with self._lock:
            self._cut = cut
        self.check()

    def check(self) -> None:
        """Raise L{CancelledError} where the attempt was ended."""
        if self._is_cancelled:
            raise CancelledError()

    def read(self, size: int = -1) -> bytes:
        self.check()
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        self.check()
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


class _Clients:
    """
    A client of boto3 for each endpoint and region. Clients may be used by many threads
    at once, the session that makes them may not.

    Made and used in threads only: boto3 is imported with the first.
    """

    def __init__(self, access_id: str | None, access_key: str | None) -> None:
        self._access_id = access_id
        self._access_key = access_key
        self._lock = threading.Lock()
        self._session: Any = None
        self._clients: OrderedDict[tuple[str | None, str | None], Any] = OrderedDict()

    def put(self, target: _Target, body: _Body, tags: str) -> None:
        """
        Put an object, and close what it is read from.

        @raise DestinationError: with the client's words.
        """
        problem = None
        try:
            # Before boto3 is imported, where there is nothing to do any more.
            body.check()
            from pcapsvc.destinations.s3.exchange import Exchange

            exchange = Exchange()
            body.begin(exchange.cut)
            with exchange.here():
                try:
                    self._put(target, body, tags)
                finally:
                    problem = exchange.problem
        except CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - a client that is not ours, with errors of many libraries
            body.check()
            words, retryable = (problem, True) if problem else _told(error)
            if _is_without_credentials(error, target.is_configured):
                self._forget()
            raise DestinationError(
                words, retryable=retryable, retry_after_seconds=_asked_seconds(error)
            ) from None
        finally:
            body.close()

    def _put(self, target: _Target, body: _Body, tags: str) -> None:
        options: dict[str, Any] = {}
        if target.acl != "private":
            options["ACL"] = target.acl
        if target.encryption:
            options["ServerSideEncryption"] = "AES256"
        self._client(target.endpoint, target.region).put_object(
            Bucket=target.bucket,
            Key=target.key,
            Body=body,
            ContentLength=body.size,
            ContentType=_MEDIA_TYPE,
            Metadata={_TAGS: metadata_value(tags)},
            **options,
        )

    def _client(self, endpoint: str | None, region: str | None) -> Any:
        with self._lock:
            client = self._clients.pop((endpoint, region), None)
            if client is None:
                client = self._make(endpoint, region)
            self._clients[endpoint, region] = client
            if len(self._clients) > _MOST_CLIENTS:
                # Not closed: another thread may be using it. It goes away with its last user.
                self._clients.popitem(last=False)
            return client

    def _forget(self) -> None:
        """Look for credentials anew, next time: boto3 reads a profile once."""
        if self._access_key is None:
            with self._lock:
                self._session = None
                self._clients.clear()

    def _make(self, endpoint: str | None, region: str | None) -> Any:
        import boto3.session
        from botocore.config import Config

        from pcapsvc.destinations.s3.exchange import make_ending

        if self._session is None:
            self._session = boto3.session.Session(
                aws_access_key_id=self._access_id, aws_secret_access_key=self._access_key
            )
        if region is None and self._session.region_name is None:
            # A signature needs one. This is what stores that have none of their own expect.
            region = "us-east-1"
        client = self._session.client(
            "s3",
            endpoint_url=endpoint,
            region_name=region,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                # Many stores know nothing of the newer checksums.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                connect_timeout=_CONNECT_SECONDS,
                read_timeout=_READ_SECONDS,
                retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            ),
        )
        make_ending(client)
        # After botocore's own for the same event, which makes the context.
        client.meta.events.register_last("before-parameter-build.s3", _ask_once)
        return client


def _ask_once(model: Any, context: dict[str, Any], **_: Any) -> None:
    """
    Where an answer redirects and doesn't tell the bucket's region, botocore asks for it; and where
    that is redirected as well, it would ask again, and again.
    """
    if model.name == "HeadBucket":
        context.setdefault("s3_redirect", {})["redirected"] = True


def metadata_value(tags: str) -> str:
    """
    Tags as the value of an object's metadata, which is printable ASCII: anything else,
    and the percent sign, is percent-encoded as UTF-8. What is too long is cut at a comma.
    """
    safe = _UNSAFE.sub(lambda found: _percent_encoded(found[0]), tags)
    if len(safe) <= _MOST_TAGS_BYTES:
        return safe
    comma = safe.rfind(",", 0, _MOST_TAGS_BYTES + 1)
    if comma >= 0:
        return safe[:comma]
    # Not within an encoded byte.
    return re.sub(r"%.?\Z", "", safe[:_MOST_TAGS_BYTES])


def _percent_encoded(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "replace"))


def _asked_seconds(error: Exception) -> float | None:
    """How long the service asks to be left alone, where it does."""
    metadata = getattr(error, "response", None) or {}
    headers = metadata.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return asked_delay(headers.get("retry-after"), headers.get("date"))


def _is_without_credentials(error: Exception, is_trusted: bool) -> bool:
    """
    Whether there were no credentials, or, by the word of the service, old ones.

    @param is_trusted: whether to take its word. Each time costs a look at the files.
    """
    from botocore import exceptions

    if isinstance(error, exceptions.ClientError):
        return is_trusted and error.response.get("Error", {}).get("Code") in _STALE_CODES
    return isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError)


def _told(error: Exception) -> tuple[str, bool]:
    """What went wrong, in words, and whether it may go right later."""
    from botocore import exceptions
    from botocore.parsers import ResponseParserError

    if isinstance(error, exceptions.ClientError):
        problem = error.response.get("Error", {})
        code, message = str(problem.get("Code", "")), str(problem.get("Message", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        words = ": ".join(part for part in (code, message) if part) or f"answered {status}"
        return words, code in _PASSING_CODES or status in (408, 429) or status >= 500
    if isinstance(error, exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return str(error), False
    passing = (
        exceptions.ConnectionError,
        exceptions.HTTPClientError,
        exceptions.CredentialRetrievalError,
        ResponseParserError,
        OSError,
    )
    if isinstance(error, passing):
        return str(error), True
    if isinstance(error, exceptions.BotoCoreError | ValueError):
        return str(error), False
    return f"{type(error).__name__}: {error}", True
