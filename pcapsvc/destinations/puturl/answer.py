"""
What the answer to a PUT means: whether the capture was stored, and if not, what is wrong.

Nothing that a server says is repeated, except for the codes that are known here: a server may repeat what it
was sent, and so the signature.
"""

from __future__ import annotations

import base64
import binascii
import re

from pcapsvc.core.errors import DestinationError
from pcapsvc.net.http_client import Response

# A new file, or a new version of one (RFC 9110, section 9.3.4; RFC 4918, section 9.7).
_STORED = frozenset({200, 201, 204})

_CODE = re.compile(rb"<Code>\s*([A-Za-z.]{3,64})\s*</Code>")
_EXPIRED = "the URL has expired"
_KEY = "the key that signed the URL is not valid"
_SIGNATURE = "the signature in the URL is not valid for this request"
_DENIED = "the URL doesn't permit writing this file"
_MISSING = "what the URL names doesn't exist"
_TOO_LARGE = "the capture is too large"
_NO_KEY = "the key with which KMS encrypts there can't be used"
_LATER = "try again later"

# The codes of S3 ("Error responses" in its API Reference), of Google's XML API ("HTTP status and error codes
# for XML") and of Azure ("Blob Storage error codes", "Common REST API error codes"), and whether they pass.
_CODES: dict[str, tuple[str, bool]] = {
    "AccessDenied": (_DENIED, False),
    "AccountIsDisabled": ("the account is disabled", False),
    "AuthenticationFailed": (_SIGNATURE, False),
    "AuthorizationFailure": (_DENIED, False),
    "AuthorizationPermissionMismatch": (_DENIED, False),
    "AuthorizationResourceTypeMismatch": (_DENIED, False),
    "AuthorizationSourceIPMismatch": ("the URL is for another client address", False),
    "AuthorizationProtocolMismatch": ("the URL is for another protocol", False),
    "BlobImmutableDueToPolicy": ("a file is there already, and must not be changed", False),
    "ContainerNotFound": (_MISSING, False),
    "EntityTooLarge": (_TOO_LARGE, False),
    "ExpiredToken": (_EXPIRED, False),
    "InternalError": (_LATER, True),
    "InvalidAccessKeyId": (_KEY, False),
    "InvalidToken": (_KEY, False),
    "KMS.DisabledException": (_NO_KEY, False),
    "KMS.KMSInvalidStateException": (_NO_KEY, False),
    "KMS.NotFoundException": (_NO_KEY, False),
    "KMS.ThrottlingException": (_LATER, True),
    "NoSuchBucket": (_MISSING, False),
    "OperationAborted": (_LATER, True),
    "OperationTimedOut": (_LATER, True),
    "PermanentRedirect": ("the URL is for another region", False),
    "RequestBodyTooLarge": (_TOO_LARGE, False),
    "RequestTimeout": ("the capture arrived too slowly", True),
    "RequestTimeTooSkewed": ("the URL was signed with a wrong clock", False),
    "ResourceNotFound": (_MISSING, False),
    "ServerBusy": (_LATER, True),
    "ServiceUnavailable": (_LATER, True),
    "SignatureDoesNotMatch": (_SIGNATURE, False),
    "SlowDown": (_LATER, True),
    "TooManyRequests": (_LATER, True),
}
_WORDS = {
    400: "the server doesn't understand the request",
    401: "the server requires a login",
    403: _DENIED,
    404: _MISSING,
    405: "the server accepts no PUT there",
    409: "the directory doesn't exist, or something is in the way",
    410: _MISSING,
    413: _TOO_LARGE,
    414: "the URL is too long",
    415: "the server doesn't accept this type of file",
    423: "the file is locked",
    429: _LATER,
    501: "the server doesn't support PUT",
    503: _LATER,
    507: "the server has no room",
}
# What the services say beside the codes above: S3 and Google, Azure, S3.
_EXPIRED_WORDS = b"Request has expired"
_OUTSIDE_WORDS = b"not valid in the specified time frame"
_EARLY_WORDS = b"Request is not yet valid"

_MD5 = re.compile(r"(?:W/)?\"?([0-9A-Fa-f]{32})\"?")


def check_answer(response: Response, *, md5: bytes, has_sent_all: bool) -> None:
    """
    Check that an answer proves that the capture was stored.

    201 and 204 do, and 200 if it comes without a page: the login page of a captive portal has it too. If the
    service tells the MD5 of what it has, it must be that of the capture.

    @param md5: of the capture.
    @param has_sent_all: whether all of the capture was sent before the answer.

    @raise DestinationError: if it doesn't. The words contain nothing of the URL.
    """
    code = response.code
    if code not in _STORED:
        words, passes = _refusal(response)
        raise DestinationError(
            f"answered {code}: {words}", retryable=passes, retry_after_seconds=response.asked_seconds
        )
    if not has_sent_all:
        raise DestinationError(f"answered {code} before it had the whole capture", retryable=True)
    if code == 200 and not _is_stored(response):
        raise DestinationError(
            "answered 200 with a page, which is not the answer of a server that has stored a file",
            retryable=True,
        )
    found = _md5_of(response)
    if found is not None and found != md5:
        raise DestinationError(f"answered {code} with the checksum of something else", retryable=True)


def _is_stored(response: Response) -> bool:
    """Whether 200 comes from a server that stores files: with no body, or with an entity tag and no page."""
    if not response.body.strip():
        return True
    media_type = response.headers.get("content-type", "").lower()
    return "etag" in response.headers and "html" not in media_type and b"<html" not in response.body.lower()


def _md5_of(response: Response) -> bytes | None:
    """The MD5 that a service says the file has; L{None} if it doesn't say."""
    headers = response.headers
    # Azure; Google ("x-goog-hash" in the reference of its XML API).
    stated = [headers.get("content-md5", "")]
    stated += [
        part.strip()[4:]
        for part in headers.get("x-goog-hash", "").split(",")
        if part.strip().startswith("md5=")
    ]
    for text in filter(None, stated):
        try:
            digest = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            continue
        if len(digest) == 16:
            return digest
    # An entity tag is the MD5 in S3 only, and only if it encrypts with no key but its own (API Reference,
    # "Object"). Others have entity tags that look like one.
    is_s3 = "x-amz-request-id" in headers
    has_key = headers.get("x-amz-server-side-encryption", "").startswith("aws:kms") or (
        "x-amz-server-side-encryption-customer-algorithm" in headers
    )
    tag = _MD5.fullmatch(headers.get("etag", "").strip())
    return bytes.fromhex(tag[1]) if is_s3 and not has_key and tag is not None else None


def _refusal(response: Response) -> tuple[str, bool]:
    """Why a server refused, and whether that passes."""
    status, body = response.code, response.body
    if _EXPIRED_WORDS in body:
        return _EXPIRED, False
    if _OUTSIDE_WORDS in body:
        return f"{_EXPIRED}, or is not valid yet", False
    if _EARLY_WORDS in body:
        return "the URL is not valid yet", True
    code = _code(response)
    if code in _CODES:
        words, code_passes = _CODES[code]
        return f"{words} ({code})", code_passes or response.is_passing_error
    if 200 <= status < 300:
        # 202 Accepted, for instance: it may have been stored, or not.
        return "this doesn't mean that the capture was stored", True
    if 300 <= status < 400:
        # A captive portal goes away.
        return "a redirect, which is not followed", True
    return _WORDS.get(status, "an error that is not known"), response.is_passing_error


def _code(response: Response) -> str:
    found = _CODE.search(response.body)
    return found[1].decode("ascii") if found else response.headers.get("x-ms-error-code", "")
