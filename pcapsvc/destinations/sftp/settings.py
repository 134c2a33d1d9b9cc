"""C{[sftp]}."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar

from msgspec import Meta, field

from pcapsvc.core.compression import UNCOMPRESSED, CompressionChoice
from pcapsvc.core.errors import Problem
from pcapsvc.destinations.sftp.hostkey import parse_host_key
from pcapsvc.destinations.sftp.keyfile import is_encrypted, read_key_file
from pcapsvc.settings.files import absolute_path
from pcapsvc.settings.kinds import Compress, Flag, FolderTemplate, Line, Path, Port, ServerHost, converted
from pcapsvc.settings.secret import Secret, revealed
from pcapsvc.settings.section import BuildContext, Conflict, DestinationSection, SecretKeys

if TYPE_CHECKING:
    from pcapsvc.interfaces.delivery import IDestination
    from pcapsvc.settings.settings import Settings


def _key_file(path: str) -> str:
    read_key_file(path)
    return absolute_path(path)


def _host_keys(given: str | tuple[str, ...]) -> tuple[str, ...]:
    lines = (given,) if isinstance(given, str) else given
    for line in lines:
        parse_host_key(line)
    return lines


class SftpSettings(DestinationSection, frozen=True, kw_only=True):
    """
    A server of files, over SSH.

    @ivar key_file: the path of the private key to log in with.
    @ivar passphrase: of that key; L{None} if it has none.
    @ivar host_keys: the lines with the public keys that the server may have.
    @ivar directory: where captures are to be there; L{None} is where the login leads to.
    @ivar compress: how its files are compressed.
    """

    name: ClassVar[str] = "sftp"
    table: ClassVar[str | None] = "sftp"
    secrets: ClassVar[tuple[SecretKeys, ...]] = (
        SecretKeys(field="passphrase", key=None, file_key="passphrasefile"),
    )

    upload: Flag = False
    host: ServerHost | None = None
    port: Port = 22
    user: Line | None = None
    key_file: Annotated[Path, converted(_key_file)] | None = field(name="keyfile", default=None)
    passphrase: Secret | None = None
    host_keys: Annotated[
        Line | Annotated[tuple[Line, ...], Meta(min_length=1, max_length=16)],
        Meta(description="a public key, or a list of up to 16"),
        converted(_host_keys),
    ] = field(name="hostkey", default=())
    directory: FolderTemplate | None = None
    compress: Compress = UNCOMPRESSED

    def is_enabled(self) -> bool:
        """Whether captures are uploaded."""
        return self.upload

    def uses_twisted_tls(self) -> bool:
        """It doesn't."""
        return False

    def problems(self, settings: Settings) -> Iterator[Problem]:
        """Uploading needs a server, its key and a login."""
        needed = {
            "host": self.host,
            "user": self.user,
            "keyfile": self.key_file,
            "hostkey": self.host_keys or None,
        }
        for key, value in needed.items():
            if self.upload and value is None:
                path = self.key_path(key)
                yield Conflict(path="sftp.upload", others=(path,), rule=f"needs {path}")
        if self.key_file is not None and self.passphrase is None:
            try:
                encrypted = is_encrypted(read_key_file(self.key_file))
            except ValueError:
                return
            if encrypted:
                yield Conflict(
                    path="sftp.keyfile",
                    others=("sftp.passphrasefile",),
                    rule="has a passphrase, which sftp.passphrasefile must give",
                )

    def compression(self) -> CompressionChoice:
        """As C{compress} says."""
        return CompressionChoice(usual=self.compress)

    def build(self, context: BuildContext) -> IDestination:
        """The destination."""
        from pcapsvc.destinations.sftp.destination import SFTP

        assert self.host is not None and self.user is not None and self.key_file is not None
        return SFTP(
            context.reactor,
            run_in_thread=context.destination_threads(),
            host=self.host,
            port=self.port,
            user=self.user,
            key_file=self.key_file,
            passphrase=revealed(self.passphrase),
            host_keys=tuple(map(parse_host_key, self.host_keys)),
            directory=self.directory or "",
        )
