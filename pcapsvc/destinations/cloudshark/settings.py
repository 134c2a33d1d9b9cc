"""C{[cloudshark]}."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar

from msgspec import field

from pcapsvc.core.compression import UNCOMPRESSED, CompressionChoice
from pcapsvc.core.errors import Problem
from pcapsvc.settings.kinds import Flag, Port, SecondsOrNone, ServerHost, Verify, one_of
from pcapsvc.settings.rules import certificate_name
from pcapsvc.settings.secret import Secret
from pcapsvc.settings.section import BuildContext, Conflict, DestinationSection, Option, SecretKeys

if TYPE_CHECKING:
    from pcapsvc.interfaces.delivery import IDestination
    from pcapsvc.settings.settings import Settings


# It reads gzip. Nothing says that it reads zstd.
_READABLE = ("gzip", UNCOMPRESSED)


class CloudSharkSettings(DestinationSection, frozen=True, kw_only=True):
    """
    A CloudShark server.

    @ivar timeout_seconds: how long an upload may take; L{None} is no limit.
    @ivar compress: how its files are compressed.
    @ivar verify: whether the server's certificate is verified, or the path of the
        certificates to verify it with.
    """

    name: ClassVar[str] = "cloudshark"
    table: ClassVar[str | None] = "cloudshark"
    secrets: ClassVar[tuple[SecretKeys, ...]] = (
        SecretKeys(field="token", key="token", file_key="tokenfile"),
    )
    options: ClassVar[tuple[Option, ...]] = (
        Option(name="cshost", key="host", kind="text", help="CloudShark host."),
        Option(name="csscheme", key="scheme", kind="text", help="CloudShark scheme: http or https."),
        Option(
            name="cstoken",
            key="token",
            kind="text",
            help="CloudShark API token. Every user of this host can see it here: the key tokenfile is safer.",
        ),
        Option(name="csport", key="port", kind="number", help="CloudShark port."),
        Option(
            name="cstimeout",
            key="timeout",
            kind="number",
            help="Seconds that an upload to CloudShark may take; 0 is no limit.",
        ),
        Option(name="upload", key="upload", kind="flag", help="Upload captures to CloudShark."),
    )

    host: ServerHost = "localhost"
    scheme: Annotated[str, one_of("http", "https")] = "https"
    port: Port = 443
    timeout_seconds: SecondsOrNone | None = field(name="timeout", default=None)
    token: Secret | None = None
    upload: Flag = False
    compress: Annotated[str, one_of(*_READABLE)] = UNCOMPRESSED
    verify: Verify = True

    def is_enabled(self) -> bool:
        """Whether captures are uploaded."""
        return self.upload

    def compression(self) -> CompressionChoice:
        """As C{compress} says. It gets no file that it can't read."""
        return CompressionChoice(usual=self.compress, readable=_READABLE)

    def problems(self, settings: Settings) -> Iterator[Problem]:
        """Uploading needs a token, and TLS needs a valid name."""
        if self.upload and self.token is None:
            yield Conflict(
                path="cloudshark.upload",
                others=("cloudshark.token", "cloudshark.tokenfile"),
                rule="needs cloudshark.token or cloudshark.tokenfile",
            )
        if self.upload and self.scheme == "https" and self.verify is not False:
            yield from certificate_name(type(self), self.host, "scheme", "verify")

    def build(self, context: BuildContext) -> IDestination:
        """The destination."""
        from pcapsvc.destinations.cloudshark.destination import CloudShark

        assert self.token is not None
        return CloudShark(
            context.reactor,
            run_in_thread=context.destination_threads(),
            scheme=self.scheme,
            host=self.host,
            port=self.port,
            token=self.token.reveal(),
            timeout_seconds=self.timeout_seconds,
            verify=self.verify,
        )
