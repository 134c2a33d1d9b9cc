"""The keys that say how to connect to a Kafka cluster, and how to log in."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from msgspec import Meta, field

from pcapsvc.core.errors import Problem, shown
from pcapsvc.settings.broker import BrokerSection
from pcapsvc.settings.files import is_key_of
from pcapsvc.settings.kinds import CertificatesFile, Flag, KeyFile, Line, SecretFile, converted, one_of
from pcapsvc.settings.secret import Secret, revealed
from pcapsvc.settings.section import Conflict, SecretKeys

if TYPE_CHECKING:
    from pcapsvc.net.kafka.security import KafkaSecurity
    from pcapsvc.settings.settings import Settings

# As in Kafka's own org.apache.kafka.common.internals.Topic.
Topic = Annotated[
    str,
    Meta(
        pattern=r"\A(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,249}\Z",
        description="up to 249 letters, digits, dots, underscores and hyphens, not '.' or '..'",
    ),
]


def _servers(given: tuple[str, ...]) -> tuple[str, ...]:
    """The servers without empty entries, which the original ignored."""
    servers = tuple(filter(None, given))
    for server in servers:
        host, colon, port = server.rpartition(":")
        bare = ":" not in host or (host.startswith("[") and host.endswith("]"))
        if not (colon and host and bare and re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 65536):
            raise ValueError('must be "HOST:PORT", or "[ADDRESS]:PORT" for IPv6')
    return servers


class KafkaClusterSection(BrokerSection, frozen=True, kw_only=True):
    """
    What a section about Kafka has in common with any other. The keys of TLS and SASL are named as in
    kafka-python.

    @ivar sasl_oauth_token_file: is read again for each connection, because tokens expire.
    """

    secrets: ClassVar[tuple[SecretKeys, ...]] = (
        SecretKeys(
            field="sasl_plain_password", key="sasl_plain_password", file_key="sasl_plain_passwordfile"
        ),
    )

    target: ClassVar[str] = "topic"

    server: Annotated[
        tuple[Annotated[str, Meta(pattern=r"\A[^\s/\x00-\x1f\x7f]*\Z")], ...],
        Meta(description='a list of servers, each "HOST:PORT"'),
        converted(_servers),
    ] = ()
    client_id: Line = field(name="clientid", default="pcapsvc")
    security_protocol: Annotated[str, one_of("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")] = "PLAINTEXT"
    ssl_cafile: CertificatesFile | None = None
    ssl_certfile: CertificatesFile | None = None
    ssl_keyfile: KeyFile | None = None
    ssl_check_hostname: Flag = True
    sasl_mechanism: (
        Annotated[str, one_of("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")] | None
    ) = None
    sasl_plain_username: Line | None = None
    sasl_plain_password: Secret | None = None
    sasl_oauth_token_file: SecretFile | None = field(name="sasl_oauth_tokenfile", default=None)
    topic: Topic = "capture"

    @classmethod
    def inherited(cls, own: Mapping[str, Any], other: Mapping[str, Any]) -> Mapping[str, Any]:
        """
        What a table takes from another one about Kafka. A login and a client certificate are for one cluster:
        they are taken only if the table names no other server. To another server, the connection is encrypted
        nevertheless if that of the other table is.
        """
        is_same = _is_within(own.get("server"), other.get("server"))
        taken = {key: other[key] for key in ("server", "clientid", "security_protocol") if key in other}
        protocol = str(own.get("security_protocol", taken.get("security_protocol", "")))
        if not is_same and "security_protocol" not in own:
            protocol = protocol.removeprefix("SASL_")
            if "security_protocol" in taken:
                taken["security_protocol"] = protocol
        keys: list[str] = []
        if protocol.endswith("SSL"):
            keys += ["ssl_cafile", "ssl_check_hostname"]
            if is_same and own.keys().isdisjoint(_CERTIFICATE):
                keys += _CERTIFICATE
        if protocol.startswith("SASL_") and is_same and own.keys().isdisjoint(_USER):
            keys += _USER
            if own.keys().isdisjoint(_PASSWORD):
                keys += _PASSWORD
        return {**taken, **{key: other[key] for key in keys if key in other}}

    def targets(self) -> Collection[object]:
        """The topic, on each bootstrap server."""
        return [("kafka", server.lower(), self.topic) for server in self.server]

    def security(self) -> KafkaSecurity:
        """Encryption and authentication."""
        from pcapsvc.net.kafka.security import KafkaSecurity

        return KafkaSecurity(
            security_protocol=self.security_protocol,
            ssl_cafile=self.ssl_cafile,
            ssl_certfile=self.ssl_certfile,
            ssl_keyfile=self.ssl_keyfile,
            ssl_check_hostname=self.ssl_check_hostname,
            sasl_mechanism=self.sasl_mechanism,
            sasl_plain_username=self.sasl_plain_username,
            sasl_plain_password=revealed(self.sasl_plain_password),
            sasl_oauth_token_file=self.sasl_oauth_token_file,
        )

    def uses_twisted_tls(self) -> bool:
        """It uses Python's."""
        return False

    def problems(self, settings: Settings) -> Iterator[Problem]:
        """What is enabled needs servers. TLS and SASL have all their keys, and the right protocol."""
        path = self.key_path
        if self.is_enabled() and not self.server and self.switch is not None:
            yield Conflict(path=path(self.switch), others=(path("server"),), rule=f"needs {path('server')}")
        yield from self._tls_problems()
        yield from self._sasl_problems()

    def _tls_problems(self) -> Iterator[Problem]:
        path = self.key_path
        uses_tls = self.security_protocol.endswith("SSL")
        for key in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
            if getattr(self, key) is not None and not uses_tls:
                yield Conflict(
                    path=path(key),
                    others=(path("security_protocol"),),
                    rule=f"has no effect without {path('security_protocol')} = 'SSL' or 'SASL_SSL'",
                )
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            yield Conflict(
                path=path("ssl_keyfile"),
                others=(path("ssl_certfile"),),
                rule=f"has no effect without {path('ssl_certfile')}",
            )
        if self.ssl_certfile is None or not uses_tls:
            return
        key_file = self.ssl_keyfile or self.ssl_certfile
        if not is_key_of(self.ssl_certfile, key_file):
            yield Conflict(
                path=path("ssl_certfile") if self.ssl_keyfile is None else path("ssl_keyfile"),
                others=(path("ssl_keyfile"), path("ssl_certfile")),
                value=shown(key_file),
                rule=f"needs {path('ssl_keyfile')}, because it doesn't contain the certificate's private key"
                if self.ssl_keyfile is None
                else f"must contain the private key of the certificate in {path('ssl_certfile')}",
            )

    def _sasl_problems(self) -> Iterator[Problem]:
        path = self.key_path
        login = tuple(map(path, ("sasl_plain_username", "sasl_plain_password", "sasl_plain_passwordfile")))
        protocol, mechanism = self.security_protocol, self.sasl_mechanism
        logs_in = protocol.startswith("SASL_")
        if logs_in and mechanism is None:
            yield Conflict(
                path=path("security_protocol"),
                others=(path("sasl_mechanism"),),
                value=shown(protocol),
                rule=f"needs {path('sasl_mechanism')}",
            )
        if mechanism is not None and not logs_in:
            yield Conflict(
                path=path("sasl_mechanism"),
                others=(path("security_protocol"),),
                rule=f"has no effect without {path('security_protocol')} = 'SASL_SSL' or 'SASL_PLAINTEXT'",
            )
        by_password = mechanism is not None and mechanism != "OAUTHBEARER"
        username, password = self.sasl_plain_username, self.sasl_plain_password
        if by_password and (username is None or password is None):
            yield Conflict(
                path=path("sasl_mechanism"),
                others=login,
                value=shown(mechanism),
                rule=f"needs {path('sasl_plain_username')},"
                f" and {path('sasl_plain_password')} or sasl_plain_passwordfile",
            )
        if not by_password and not (username is None and password is None):
            yield Conflict(
                path=login[0] if username is not None else login[1],
                others=(path("sasl_mechanism"), *login),
                rule="has no effect without"
                f" {path('sasl_mechanism')} = 'PLAIN', 'SCRAM-SHA-256' or 'SCRAM-SHA-512'",
            )
        if mechanism == "OAUTHBEARER" and self.sasl_oauth_token_file is None:
            yield Conflict(
                path=path("sasl_mechanism"),
                others=(path("sasl_oauth_tokenfile"),),
                value=shown(mechanism),
                rule=f"needs {path('sasl_oauth_tokenfile')}",
            )
        if mechanism != "OAUTHBEARER" and self.sasl_oauth_token_file is not None:
            yield Conflict(
                path=path("sasl_oauth_tokenfile"),
                others=(path("sasl_mechanism"),),
                rule=f"has no effect without {path('sasl_mechanism')} = 'OAUTHBEARER'",
            )


_USER = ("sasl_mechanism", "sasl_plain_username", "sasl_oauth_tokenfile")
_PASSWORD = ("sasl_plain_password", "sasl_plain_passwordfile")
_CERTIFICATE = ("ssl_certfile", "ssl_keyfile")


def _is_within(own: Any, other: Any) -> bool:
    """Whether a list of servers names no other than those of another list; an absent one doesn't."""
    if own is None:
        return True
    return isinstance(own, list) and isinstance(other, list) and all(server in other for server in own)
