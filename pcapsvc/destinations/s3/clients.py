"""The clients of boto3 that put objects, and what their errors mean."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec
from twisted.internet.defer import CancelledError

from pcapsvc.core.errors import DestinationError
from pcapsvc.core.header_text import header_text
from pcapsvc.core.http_status import is_passing_error
from pcapsvc.core.retry import asked_delay
from pcapsvc.destinations.s3.multipart import Sizes, Upload
from pcapsvc.destinations.s3.proof import Unproven, check_stored, md5_of

if TYPE_CHECKING:
    from pcapsvc.net.boto_exchange import Exchange

_CONNECT_SECONDS = 10
_READ_SECONDS = 60
# Retries are the outbox's, each on a connection of its own.
_ATTEMPTS = 1
# How long it may take to have the parts of a failed upload removed.
_ABORT_SECONDS = 10.0
# How many failed uploads one attempt removes. Each of the earlier ones can have left one.
_MOST_ABORTED = 20
#: How many clients are kept. Each costs a few megabytes.
MAX_CLIENTS = 8

_TAGS = "tags"
# S3 User Guide, "User-defined object metadata": 2 KB of names and values.
_MOST_TAGS_BYTES = 2048 - len(_TAGS)

# S3 API Reference, "List of error codes": credentials that are outdated.
_STALE_CODES = frozenset({"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch"})

# Of an entity, or of attributes (XML 1.0, sections 3.3 and 4.2).
_DECLARATION = re.compile(rb"<!(?:ENTITY|ATTLIST)")

# Those of botocore's standard retry mode (botocore.retries.standard), and S3's own.
_RETRYABLE_CODES = frozenset(
    {
        "BandwidthLimitExceeded",
        "EC2ThrottledException",
        "InternalError",
        # Somebody has aborted it. Another attempt begins another one.
        "NoSuchUpload",
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


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """
    Where and how to put an object.

    @ivar is_configured: whether this is the configured endpoint.
    @ivar encryption: whether S3 encrypts it (AES256), unless there is a C{kms_key_id}.
    @ivar storage_class: L{None} is the bucket's usual one.
    @ivar kms_key_id: the key with which KMS encrypts it.
    """

    endpoint: str | None
    is_configured: bool
    region: str | None
    bucket: str
    key: str
    acl: str
    encryption: bool
    storage_class: str | None = None
    kms_key_id: str | None = None

    @property
    def where(self) -> dict[str, str]:
        """The object, as boto3's arguments."""
        return {"Bucket": self.bucket, "Key": self.key}

    def options(self) -> dict[str, Any]:
        """How it is stored, likewise."""
        options: dict[str, Any] = {}
        if self.acl != "private":
            options["ACL"] = self.acl
        if self.kms_key_id is not None:
            options |= {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": self.kms_key_id}
        elif self.encryption:
            options["ServerSideEncryption"] = "AES256"
        if self.storage_class is not None:
            options["StorageClass"] = self.storage_class
        return options


class Body:
    """
    The file that boto3 reads an object from, until the attempt is cancelled.

    @param is_made: whether the file is made while it is read.
    """

    def __init__(self, file: BinaryIO, size: int, *, is_made: bool = False) -> None:
        self._file = file
        self.size = size
        self.is_made = is_made
        self._lock = threading.Lock()
        self._is_cancelled = False
        self._cut: Callable[[], None] | None = None

    def cancel(self) -> None:
        """Cancel the attempt, from the reactor's thread."""
        with self._lock:
            self._is_cancelled = True
            if self._cut is not None:
                self._cut()

    def begin(self, cut: Callable[[], None]) -> None:
        """
        Set what ends the attempt's connections, when the attempt begins.

        @raise CancelledError: if the attempt is cancelled already.
        """
        with self._lock:
            self._cut = cut
        self.check()

    def check(self) -> None:
        """Raise L{CancelledError} if the attempt is cancelled."""
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


class Clients:
    """
    A client of boto3 for each endpoint and region. Clients are thread-safe, the session that makes
    them is not.

    They are made and used in threads only: the first one imports boto3.
    """

    def __init__(self, access_id: str | None, access_key: str | None, sizes: Sizes) -> None:
        self._access_id = access_id
        self._access_key = access_key
        self._sizes = sizes
        self._lock = threading.Lock()
        self._session: Any = None
        self._clients: OrderedDict[tuple[str | None, str | None], Any] = OrderedDict()

    def put(
        self, target: Target, body: Body, media_type: str, tags: str, *, may_be_there: bool = False
    ) -> None:
        """
        Put an object, and close its body.

        @param may_be_there: whether an earlier attempt may have succeeded.

        @raise DestinationError: with the client's message.
        """
        problem = None
        try:
            # Before boto3 is imported for nothing.
            body.check()
            from pcapsvc.net.boto_exchange import Exchange

            exchange = Exchange()
            body.begin(exchange.cut)
            with exchange.here():
                try:
                    self._put(target, body, media_type, tags, exchange, may_be_there)
                finally:
                    problem = exchange.problem
        except CancelledError:
            raise
        except Unproven as error:
            # A captive portal, or a proxy, goes away.
            raise DestinationError(str(error), retryable=True) from None
        except Exception as error:  # noqa: BLE001 - a client that is not ours, with errors of many libraries
            body.check()
            words, retryable = (problem, True) if problem else _described(error)
            if _is_without_credentials(error, target.is_configured):
                self._forget()
            raise DestinationError(
                words, retryable=retryable, retry_after_seconds=_asked_seconds(error)
            ) from None
        finally:
            body.close()

    def _put(
        self,
        target: Target,
        body: Body,
        media_type: str,
        tags: str,
        exchange: Exchange,
        may_be_there: bool,
    ) -> None:
        client = self._client(target.endpoint, target.region)
        options = {
            **target.options(),
            "ContentType": media_type,
            "Metadata": {_TAGS: header_text(tags, most=_MOST_TAGS_BYTES)},
        }

        def ask() -> Mapping[str, Any]:
            return _head(client, target)

        if body.size <= self._sizes.single_bytes:
            answer = client.put_object(**target.where, Body=body, ContentLength=body.size, **options)
            check_stored(answer, tag=md5_of(body), size=body.size, ask=ask)
            return
        if may_be_there:
            _abort_earlier(client, target, exchange.renew)
        upload = Upload(client, target.where, body, self._sizes, exchange.renew)
        try:
            if not (may_be_there and _is_there(upload, ask)):
                upload.store(options, ask)
        finally:
            if upload.id is not None:
                _abort(client, target, upload.id)

    def _client(self, endpoint: str | None, region: str | None) -> Any:
        with self._lock:
            client = self._clients.pop((endpoint, region), None)
            if client is None:
                client = self._make(endpoint, region)
            self._clients[endpoint, region] = client
            if len(self._clients) > MAX_CLIENTS:
                # Not closed, as another thread may be using it. It is freed with its last user.
                self._clients.popitem(last=False)
            return client

    def _forget(self) -> None:
        """Look up the credentials again the next time: boto3 reads a profile only once."""
        if self._access_key is None:
            with self._lock:
                self._session = None
                self._clients.clear()

    def _make(self, endpoint: str | None, region: str | None) -> Any:
        from botocore.config import Config

        from pcapsvc.net.boto_exchange import make_ending
        from pcapsvc.net.boto_session import boto_session

        if self._session is None:
            self._session = boto_session(self._access_id, self._access_key)
        if region is None and self._session.region_name is None:
            # A signature needs one, and this is what stores without regions expect.
            region = "us-east-1"
        client = self._session.client(
            "s3",
            endpoint_url=endpoint,
            region_name=region,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                # Many stores don't know the newer checksums.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                connect_timeout=_CONNECT_SECONDS,
                read_timeout=_READ_SECONDS,
                retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            ),
        )
        make_ending(client)
        # After botocore's own handler of this event, which makes the context.
        client.meta.events.register_last("before-parameter-build.s3", _ask_once)
        # Whatever matches a wildcard earlier in its name comes first: before botocore's own handler of
        # "before-parse.s3.*", which parses the answer.
        client.meta.events.register("before-parse.*", _check_declarations)
        return client


def _head(client: Any, target: Target) -> Mapping[str, Any]:
    """The answer to a HeadObject, for what PutObject's answer has not proven."""
    from botocore.exceptions import ClientError

    try:
        answer: Mapping[str, Any] = client.head_object(**target.where)
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        raise Unproven(
            f"the ETag of the answer is not the MD5 of the capture, and HeadObject is answered {status}"
        ) from None
    return answer


def _is_there(upload: Upload, ask: Callable[[], Mapping[str, Any]]) -> bool:
    """Whether an earlier attempt has succeeded. If that can't be found out, it may be done again."""
    try:
        return upload.is_there(ask)
    except Unproven:
        return False


def _abort_earlier(client: Any, target: Target, renew: Callable[[], object]) -> None:
    """
    Have the service remove the parts of earlier attempts, if the request for that didn't arrive: the link was
    cut, or the process was killed. No other node uploads an object of this name.

    @param renew: called before each request.
    """
    try:
        renew()
        answer = client.list_multipart_uploads(Bucket=target.bucket, Prefix=target.key)
        ours = (one["UploadId"] for one in answer.get("Uploads", ()) if one["Key"] == target.key)
        for upload in islice(ours, _MOST_ABORTED):
            renew()
            client.abort_multipart_upload(**target.where, UploadId=upload)
    except Exception:  # noqa: BLE001 - it may not be permitted; if it's the connection, the next request fails
        pass


def _abort(client: Any, target: Target, upload: str) -> None:
    """Have the service remove the parts of an upload, as far as it can be reached: they would cost money."""
    from pcapsvc.net.boto_exchange import Exchange

    exchange = Exchange()
    # A thread can't be interrupted, and a slow answer trips no time-out.
    limit = threading.Timer(_ABORT_SECONDS, exchange.cut)
    limit.daemon = True
    try:
        limit.start()
        with exchange.here():
            client.abort_multipart_upload(**target.where, UploadId=upload)
    except Exception:  # noqa: BLE001 - of what went wrong before, more will be said
        pass
    finally:
        limit.cancel()


def _ask_once(model: Any, context: dict[str, Any], **_: Any) -> None:
    """
    If a redirect doesn't name the bucket's region, botocore sends a HeadBucket to find it. If that is
    redirected too, botocore would send another, and so on.
    """
    if model.name == "HeadBucket":
        context.setdefault("s3_redirect", {})["redirected"] = True


def _check_declarations(response_dict: Mapping[str, Any], **_: Any) -> None:
    """
    Parse no XML that declares entities, or attributes with default values: 60 KB of it would keep the parser
    busy for 6 s, and everything else waits for that. S3 declares nothing.

    @raise Unproven: if it does.
    """
    if _DECLARATION.search(response_dict["body"] or b""):
        raise Unproven("the answer declares entities or attributes, so it is not S3's")


def _asked_seconds(error: Exception) -> float | None:
    """How long the service asks us to wait, or L{None}."""
    metadata = getattr(error, "response", None) or {}
    headers = metadata.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return asked_delay(headers.get("retry-after"), headers.get("date"))


def _is_without_credentials(error: Exception, is_trusted: bool) -> bool:
    """
    Whether there were no credentials, or the service says that they are outdated.

    @param is_trusted: whether to believe the service. Each time makes us read the files again.
    """
    from botocore import exceptions

    if isinstance(error, exceptions.ClientError):
        return is_trusted and error.response.get("Error", {}).get("Code") in _STALE_CODES
    return isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError)


def _described(error: Exception) -> tuple[str, bool]:
    """What went wrong, in words, and whether it is retryable."""
    from botocore import exceptions
    from botocore.parsers import ResponseParserError

    from pcapsvc.bounded.boto_answers import connection_words

    if isinstance(error, exceptions.ClientError):
        problem = error.response.get("Error", {})
        code, message = str(problem.get("Code", "")), str(problem.get("Message", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        words = ": ".join(part for part in (code, message) if part) or f"answered {status}"
        # S3's own redirects have a code. Others are from a captive portal, or a proxy, which goes away.
        is_foreign = 300 <= status < 400 and code in ("", str(status))
        # What KMS answers to S3 is passed on with 400.
        passes = code.removeprefix("KMS.") in _RETRYABLE_CODES or is_passing_error(status)
        return words, is_foreign or passes
    if isinstance(error, exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return str(error), False
    retryable = (
        exceptions.ConnectionError,
        exceptions.HTTPClientError,
        exceptions.CredentialRetrievalError,
        ResponseParserError,
        OSError,
    )
    if isinstance(error, retryable):
        return connection_words(error), True
    if isinstance(error, RecursionError):
        return "the answer is nested too deeply, so it is not S3's", True
    if isinstance(error, exceptions.BotoCoreError | ValueError):
        return str(error), False
    return f"{type(error).__name__}: {error}", True
