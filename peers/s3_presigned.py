"""
Signatures in URLs, for L{peers.s3_process}: moto knows only those in headers. A URL whose signature is valid
and has not expired becomes a request with such headers, of the same user (Amazon S3 API Reference,
"Authenticating Requests: Using Query Parameters").
"""

from __future__ import annotations

import hmac
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, urlencode

from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from moto.core import DEFAULT_ACCOUNT_ID
from moto.iam.access_control import create_access_key


class BadSignature(Exception):
    """A signature is not valid. The message is for the sender."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def is_presigned(environ: dict[str, Any]) -> bool:
    """Whether the URL of a request has a signature."""
    return "X-Amz-Signature=" in environ.get("QUERY_STRING", "")


def sign_again(environ: dict[str, Any], body: bytes) -> None:
    """
    Check the signature of a URL, and put one into the headers instead.

    @raise BadSignature: if it is not valid.
    """
    given = dict(parse_qsl(environ["QUERY_STRING"], keep_blank_values=True))
    signature = given.pop("X-Amz-Signature")
    began = datetime.strptime(given["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    if datetime.now(UTC) > began + timedelta(seconds=int(given["X-Amz-Expires"])):
        raise BadSignature("AccessDenied", "Request has expired")
    key, _, region, service, _ = given["X-Amz-Credential"].split("/")
    credentials = create_access_key(DEFAULT_ACCOUNT_ID, "aws", key, {}).create_credentials()
    headers = _headers(environ)
    signed = given["X-Amz-SignedHeaders"].split(";")
    # As SigV4 for S3 wants it ("Error responses", AccessDenied).
    if unsigned := [name for name in headers if name.startswith("x-amz-") and name not in signed]:
        raise BadSignature(
            "AccessDenied", f"There were headers present in the request which were not signed {unsigned}"
        )
    # Not its decoded form: what is signed is what was sent.
    url = f"https://{headers['host']}{environ['REQUEST_URI'].partition('?')[0]}"
    presigned = AWSRequest("PUT" if environ["REQUEST_METHOD"] == "PUT" else "GET", url, params=given)
    for name in signed:
        presigned.headers[name] = headers.get(name, "")
    presigned.context["timestamp"] = given["X-Amz-Date"]
    presigned.context["payload_signing_enabled"] = False
    auth = S3SigV4QueryAuth(credentials, service, region, expires=int(given["X-Amz-Expires"]))
    presigned.url = f"{url}?{urlencode(given)}"
    presigned.params = {}
    expected = auth.signature(auth.string_to_sign(presigned, auth.canonical_request(presigned)), presigned)
    if not hmac.compare_digest(expected, signature):
        raise BadSignature("SignatureDoesNotMatch", "The signature does not match.")
    rest = {name: value for name, value in given.items() if not name.startswith("X-Amz-")}
    again = AWSRequest(environ["REQUEST_METHOD"], f"{url}?{urlencode(rest)}" if rest else url, data=body)
    again.headers["host"] = headers["host"]
    S3SigV4Auth(credentials, service, region).add_auth(again)
    environ["QUERY_STRING"] = urlencode(rest)
    environ["HTTP_AUTHORIZATION"] = again.headers["Authorization"]
    environ["HTTP_X_AMZ_DATE"] = again.context["timestamp"]
    environ["HTTP_X_AMZ_CONTENT_SHA256"] = again.headers["X-Amz-Content-SHA256"]


def _headers(environ: dict[str, Any]) -> dict[str, str]:
    headers = {
        name.removeprefix("HTTP_").replace("_", "-").lower(): value
        for name, value in environ.items()
        if name.startswith("HTTP_")
    }
    for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if environ.get(name):
            headers[name.replace("_", "-").lower()] = environ[name]
    return headers
