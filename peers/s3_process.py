"""
The process of L{peers.s3.S3Server}: moto, behind the checks that it lacks.

moto verifies that a signature was made with the user's secret key. It doesn't enforce these rules of AWS
(Amazon S3 API Reference, "Common Request Headers" and "Error Responses"): a request must be signed, its body
must be the one that was signed, its date must be within 15 minutes, and the names and values of its metadata
must be ASCII and no longer than 2 KB in total. Nor does it know signatures in URLs.
"""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from s3_presigned import BadSignature, is_presigned, sign_again
from werkzeug.serving import run_simple
from werkzeug.wsgi import get_input_stream

_METADATA = "HTTP_X_AMZ_META_"
_MOST_METADATA_BYTES = 2048
_LONGEST_SKEW = timedelta(minutes=15)


class Refusal(Exception):
    """An error answer of S3: a status, a code and a message."""

    def __init__(self, status: str, code: str, message: str = "refused") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def check(environ: dict[str, Any], body: bytes) -> None:
    """Raise a L{Refusal} if a request breaks a rule."""
    if is_presigned(environ):
        try:
            sign_again(environ, body)
        except BadSignature as bad:
            raise Refusal("403 Forbidden", bad.code, str(bad)) from None
    if not environ.get("HTTP_AUTHORIZATION", "").startswith("AWS4-HMAC-SHA256 "):
        raise Refusal("403 Forbidden", "AccessDenied")
    try:
        date = datetime.strptime(environ["HTTP_X_AMZ_DATE"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except (KeyError, ValueError):
        raise Refusal("403 Forbidden", "AccessDenied") from None
    if abs(datetime.now(UTC) - date) > _LONGEST_SKEW:
        raise Refusal("403 Forbidden", "RequestTimeTooSkewed")
    signed = environ.get("HTTP_X_AMZ_CONTENT_SHA256", "UNSIGNED-PAYLOAD")
    # It is not a hash for unsigned and for chunked bodies.
    if len(signed) == 64 and signed != hashlib.sha256(body).hexdigest():
        raise Refusal("400 Bad Request", "XAmzContentSHA256Mismatch")
    metadata = {
        name.removeprefix(_METADATA): value for name, value in environ.items() if name.startswith(_METADATA)
    }
    if not all(value.isascii() for value in metadata.values()):
        raise Refusal("400 Bad Request", "InvalidArgument")
    if sum(len(name) + len(value) for name, value in metadata.items()) > _MOST_METADATA_BYTES:
        raise Refusal("400 Bad Request", "MetadataTooLarge")


class Strict:
    """A WSGI application in front of another."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        body = get_input_stream(environ).read()
        environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        try:
            check(environ, body)
        except Refusal as refusal:
            answer = f"<Error><Code>{refusal.code}</Code><Message>{refusal}</Message></Error>".encode()
            start_response(
                refusal.status, [("Content-Type", "application/xml"), ("Content-Length", str(len(answer)))]
            )
            return [answer]
        answers: Iterable[bytes] = self._inner(environ, start_response)
        return answers


if __name__ == "__main__":
    moto = DomainDispatcherApplication(create_backend_app)
    run_simple("127.0.0.1", int(sys.argv[1]), Strict(moto), threaded=True, request_handler=MotoRequestHandler)
