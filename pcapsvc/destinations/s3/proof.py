"""
What proves that an object was stored.

A status of 200 proves nothing: the login page of a captive portal has it too, and often an C{ETag} of its
own. An object's C{ETag} is the MD5 of its bytes, unless KMS encrypts it (S3 API Reference, "Object"). If it
was uploaded in parts, its C{ETag} is made of their MD5s. Either is a checksum of what the service received,
so nobody else answers with it. Some services have other entity tags: then the object is asked for.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

_CHUNK_BYTES = 256 * 1024
# RFC 9110, section 8.8.3; some services leave out the quotation marks.
_ENTITY_TAG = re.compile(r"(?:W/)?(\"?)([\x21\x23-\x7e]+)\1")


class Unproven(Exception):
    """Nothing proves that the object was stored."""


class _Seekable(Protocol):
    def read(self, size: int = -1) -> bytes: ...
    def seek(self, offset: int, whence: int = 0) -> int: ...


def md5_of(file: _Seekable) -> str:
    """The MD5 of all the bytes of a file, in hexadecimal digits."""
    digest = hashlib.md5(usedforsecurity=False)
    file.seek(0)
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def check_stored(
    answer: Mapping[str, Any], *, tag: str, size: int, ask: Callable[[], Mapping[str, Any]]
) -> None:
    """
    Check that the answer to a PutObject, or to a CompleteMultipartUpload, proves that the object was stored.

    @param answer: as boto3 returns it.
    @param tag: the C{ETag} of such an object: its MD5, in hexadecimal digits, or what is made of those of its
        parts.
    @param size: of the object, in bytes.
    @param ask: returns the answer to a HeadObject, also as boto3 returns it. It is called only if the C{ETag}
        is another one, and KMS doesn't explain that.

    @raise Unproven: if it doesn't.
    @raise Exception: whatever C{ask} raises.
    """
    found = entity_tag(answer)
    if found is None:
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        raise Unproven(f"answered {status} without an ETag, so it is not S3, or has stored nothing")
    # "aws:kms" and "aws:kms:dsse" (S3 API Reference, "PutObject").
    if found.lower() == tag or str(answer.get("ServerSideEncryption")).startswith("aws:kms"):
        return
    there = ask()
    if entity_tag(there) != found or there.get("ContentLength") != size:
        raise Unproven(
            "the ETag of the answer is not the MD5 of the capture, and HeadObject finds another object"
        )


def entity_tag(answer: Mapping[str, Any]) -> str | None:
    """The C{ETag} in an answer, as boto3 returns it; L{None} if there is no valid one."""
    found = _ENTITY_TAG.fullmatch(str(answer.get("ETag", "")))
    return None if found is None else found[2]
