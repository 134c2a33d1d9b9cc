"""The keys that say how to connect to a Redis server."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from msgspec import field

from pcapsvc.core.errors import Problem
from pcapsvc.settings.broker import BrokerSection
from pcapsvc.settings.kinds import CertificatesFile, Flag, Line, Port, ServerHost
from pcapsvc.settings.rules import certificate_name
from pcapsvc.settings.secret import Secret
from pcapsvc.settings.section import Conflict, SecretKeys

if TYPE_CHECKING:
    from pcapsvc.settings.settings import Settings

_DEFAULTS: Mapping[str, Any] = {"host": "localhost", "port": 6379}


class RedisServerSection(BrokerSection, frozen=True, kw_only=True):
    """What a section about Redis has in common with any other."""

    secrets: ClassVar[tuple[SecretKeys, ...]] = (SecretKeys(field="auth", key="auth", file_key="authfile"),)

    target: ClassVar[str] = "channel"

    host: ServerHost = _DEFAULTS["host"]
    port: Port = _DEFAULTS["port"]
    username: Line | None = None
    auth: Secret | None = None
    tls: Flag = False
    ca_file: CertificatesFile | None = field(name="cafile", default=None)
    channel: Line = "capture"

    @classmethod
    def inherited(cls, own: Mapping[str, Any], other: Mapping[str, Any]) -> Mapping[str, Any]:
        """
        What a table takes from another one about Redis. A password is for one server, and for one user: it is
        taken only if the table names neither another server nor a user. To another server, the connection is
        encrypted nevertheless if that of the other table is.
        """
        keys = ["host", "port", "tls"]
        if own.get("tls") is not False:
            keys.append("cafile")
        if all(
            own.get(key, other.get(key, usual)) == other.get(key, usual) for key, usual in _DEFAULTS.items()
        ):
            keys.append("username")
            if own.keys().isdisjoint({"username", "auth", "authfile"}):
                keys += ["auth", "authfile"]
        return {key: other[key] for key in keys if key in other}

    def targets(self) -> Collection[object]:
        """The channel, which is the same in all databases of a server."""
        return [("redis", self.host.lower(), self.port, self.channel)]

    def problems(self, settings: Settings) -> Iterator[Problem]:
        """A user needs a password, a CA file needs TLS, and TLS needs a valid name."""
        path = self.key_path
        if self.username is not None and self.auth is None:
            yield Conflict(
                path=path("username"),
                others=(path("auth"), path("authfile")),
                rule=f"needs {path('auth')} or {path('authfile')}",
            )
        if self.ca_file is not None and not self.tls:
            yield Conflict(
                path=path("cafile"),
                others=(path("tls"),),
                rule=f"has no effect without {path('tls')} = true",
            )
        if self.is_enabled() and self.tls:
            yield from certificate_name(type(self), self.host, "tls")
