"""What a request may say of S3."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from pcapsvc.core.endpoint import EndpointError, endpoint_url
from pcapsvc.core.errors import Problem, shown
from pcapsvc.core.fields import check_fields
from pcapsvc.core.folder import problem_with
from pcapsvc.core.values import Flag, Folder, Name, Region, one_of

#: The canned ACLs of Amazon S3 (User Guide, "Access control list overview").
CANNED_ACLS = (
    "private",
    "public-read",
    "public-read-write",
    "aws-exec-read",
    "authenticated-read",
    "bucket-owner-read",
    "bucket-owner-full-control",
    "log-delivery-write",
)

#: The storage classes of objects (S3 API Reference, "PutObject"; C{StorageClass} in botocore's description).
STORAGE_CLASSES = (
    "STANDARD",
    "REDUCED_REDUNDANCY",
    "STANDARD_IA",
    "ONEZONE_IA",
    "INTELLIGENT_TIERING",
    "GLACIER",
    "DEEP_ARCHIVE",
    "OUTPOSTS",
    "GLACIER_IR",
    "SNOW",
    "EXPRESS_ONEZONE",
    "FSX_OPENZFS",
)

Acl = Annotated[str, one_of(*CANNED_ACLS)]
# The S3 User Guide, "Bucket naming rules", and the older, wider rules of us-east-1.
Bucket = Annotated[
    str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]\Z", description="the name of a bucket")
]

StorageClass = Annotated[str, one_of(*STORAGE_CLASSES)]
# AWS KMS API Reference, "Encrypt": an id, an alias, or the ARN of either.
KmsKeyId = Annotated[
    str,
    Meta(
        pattern=r"\A[A-Za-z0-9:/_-]{1,2048}\Z",
        description="the id, the alias or the ARN of a KMS key, of up to 2048 characters",
    ),
]


class S3Options(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a request that belong to S3, with their types. L{None} is what the message leaves out."""

    bucket: Bucket | None = None
    folder: Folder | None = None
    acl: Acl | None = None
    region: Region | None = None
    endpoint: Name | None = None
    encryption: Flag | None = None
    storageclass: StorageClass | None = None
    kmskeyid: KmsKeyId | None = None


#: The names of these fields.
S3_FIELDS = S3Options.__struct_fields__


def check_options(
    options: Mapping[str, Any],
    *,
    allowed: frozenset[str] = frozenset(S3_FIELDS),
    endpoints: tuple[str, ...] = (),
) -> Iterator[Problem]:
    """
    Everything that is wrong with what a request says of S3: first the types, then the operator's rules.

    @param options: by the request's field.
    @param allowed: the fields that a request may set.
    @param endpoints: the endpoints (as URLs) that a request may name; empty for any.
    """
    values, problems = check_fields(S3Options, options)
    yield from problems
    for field in S3_FIELDS:
        if field in values and field not in allowed:
            yield Problem(
                path=field, value=shown(values[field]), rule="must not be set by a request on this node"
            )
    folder = values.get("folder")
    if folder is not None and (problem := problem_with(folder)) is not None:
        yield Problem(path="folder", value=shown(folder), rule=problem)
    if values.get("endpoint") is not None and "endpoint" in allowed:
        yield from _check_endpoint(values["endpoint"], endpoints)


def _check_endpoint(endpoint: str, allowed: tuple[str, ...]) -> Iterator[Problem]:
    try:
        url = endpoint_url(endpoint)
    except EndpointError as error:
        yield Problem(path="endpoint", value=shown(endpoint), rule=str(error))
        return
    if allowed and url not in allowed:
        yield Problem(
            path="endpoint",
            value=shown(endpoint),
            rule=f"must be one of {', '.join(allowed)} on this node",
        )
