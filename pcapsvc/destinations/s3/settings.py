"""C{[s3]}."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar

from msgspec import Meta, field

from pcapsvc.core.compression import UNCOMPRESSED, CompressionChoice
from pcapsvc.core.endpoint import endpoint_url
from pcapsvc.core.errors import Problem
from pcapsvc.core.request import OptionFields
from pcapsvc.destinations.s3.options import (
    S3_FIELDS,
    Acl,
    Bucket,
    KmsKeyId,
    S3Options,
    StorageClass,
    check_options,
)
from pcapsvc.settings.kinds import Compress, Endpoint, Flag, FolderTemplate, Line, Region, converted, one_of
from pcapsvc.settings.rules import access_key_pair
from pcapsvc.settings.secret import Secret, revealed
from pcapsvc.settings.section import BuildContext, Conflict, DestinationSection, SecretKeys

if TYPE_CHECKING:
    from pcapsvc.interfaces.delivery import IDestination
    from pcapsvc.settings.settings import Settings


def _endpoint_urls(endpoints: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(endpoint_url, endpoints))


class S3Settings(DestinationSection, frozen=True, kw_only=True):
    """
    Amazon S3, or a service that speaks its protocol.

    @ivar access_id: with C{access_key}, the credentials; L{None} if they come from where
        Amazon's tools look for them.
    @ivar endpoint: the service's URL; L{None} is Amazon's own.
    @ivar kms_key_id: the key with which KMS encrypts, whatever C{encryption} is.
    @ivar compress: how its files are compressed.
    @ivar overrides: what a request may set for itself.
    @ivar endpoints: the URLs that a request may name; empty is any.
    """

    name: ClassVar[str] = "s3"
    table: ClassVar[str | None] = "s3"
    secrets: ClassVar[tuple[SecretKeys, ...]] = (
        SecretKeys(field="access_key", key="accesskey", file_key="accesskeyfile"),
    )

    upload: Flag = False
    access_id: Line | None = field(name="accessid", default=None)
    access_key: Secret | None = field(name="accesskey", default=None)
    endpoint: Endpoint | None = None
    bucket: Bucket | None = None
    folder: FolderTemplate | None = None
    region: Region | None = None
    acl: Acl = "private"
    encryption: Flag = False
    storage_class: StorageClass | None = field(name="storageclass", default=None)
    kms_key_id: KmsKeyId | None = field(name="kmskeyid", default=None)
    compress: Compress = UNCOMPRESSED
    overrides: Annotated[
        frozenset[Annotated[str, one_of(*S3_FIELDS)]],
        Meta(description=f"a list of any of {', '.join(S3_FIELDS)}"),
    ] = frozenset(S3_FIELDS)
    endpoints: Annotated[
        tuple[Line, ...], Meta(description="a list of endpoints"), converted(_endpoint_urls)
    ] = ()

    def is_enabled(self) -> bool:
        """Whether captures are uploaded."""
        return self.upload

    def uses_twisted_tls(self) -> bool:
        """It uses Python's."""
        return False

    def problems(self, settings: Settings) -> Iterator[Problem]:
        """Uploading needs a bucket, and credentials are complete."""
        if self.upload and self.bucket is None and "bucket" not in self.overrides:
            yield Conflict(
                path="s3.upload",
                others=("s3.bucket", "s3.overrides"),
                rule="needs s3.bucket, or 'bucket' among s3.overrides",
            )
        yield from access_key_pair(type(self), self.access_id, self.access_key)

    def compression(self) -> CompressionChoice:
        """As C{compress} says."""
        return CompressionChoice(usual=self.compress)

    def option_fields(self) -> OptionFields:
        """Where in S3 a capture is stored."""
        return OptionFields(
            destination=self.name,
            structure=S3Options,
            check=partial(check_options, allowed=self.overrides, endpoints=self.endpoints)
            if self.upload
            else None,
        )

    def build(self, context: BuildContext) -> IDestination:
        """The destination."""
        from pcapsvc.destinations.s3.destination import S3

        return S3(
            run_in_thread=context.destination_threads(),
            # An endpoint that a request names and that hangs must not use up the others' threads.
            run_elsewhere=context.destination_threads(),
            access_id=self.access_id,
            access_key=revealed(self.access_key),
            endpoint=self.endpoint,
            bucket=self.bucket,
            folder=self.folder,
            region=self.region,
            acl=self.acl,
            encryption=self.encryption,
            storage_class=self.storage_class,
            kms_key_id=self.kms_key_id,
            overrides=self.overrides,
            endpoints=self.endpoints,
        )
