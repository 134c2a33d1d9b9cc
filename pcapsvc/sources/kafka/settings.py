"""C{[kafka]}."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar

from msgspec import Meta, field

from pcapsvc.core.errors import Problem, shown
from pcapsvc.settings.files import is_key_of
from pcapsvc.settings.kinds import CertificatesFile, Flag, KeyFile, Line, SecretFile, converted, one_of
from pcapsvc.settings.secret import Secret, revealed
from pcapsvc.settings.section import BuildContext, Conflict, SecretKeys, SourceSection

if TYPE_CHECKING:
    from pcapsvc.interfaces.requests import IRequestSink, IRequestSource
    from pcapsvc.settings.settings import Settings

# As in Kafka's own org.apache.kafka.common.internals.Topic.
Topic = Annotated[
    str,
    Meta(
        pattern=r"\A(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,249}\Z",
        description="up to 249 letters, digits, dots, underscores and hyphens, not '.' or '..'",
    ),
]

_USERNAME, _PASSWORD = "kafka.sasl_plain_username", "kafka.sasl_plain_password"
_LOGIN = (_USERNAME, _PASSWORD, "kafka.sasl_plain_passwordfile")


def _servers(given: tuple[str, ...]) -> tuple[str, ...]:
    """The servers without empty entries, which the original ignored."""
    servers = tuple(filter(None, given))
    for server in servers:
        host, colon, port = server.rpartition(":")
        bare = ":" not in host or (host.startswith("[") and host.endswith("]"))
        if not (colon and host and bare and re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 65536):
            raise ValueError('must be a list of servers, each "HOST:PORT", or "[ADDRESS]:PORT" for IPv6')
    return servers


class KafkaSettings(SourceSection, frozen=True, kw_only=True):
    """
    A topic of a Kafka cluster. The keys of TLS and SASL are named as in kafka-python.

    @ivar group: the consumer group to share requests with; L{None} consumes all of them.
    @ivar sasl_oauth_token_file: is read again for each connection, because tokens expire.
    """

    name: ClassVar[str] = "kafka"
    table: ClassVar[str | None] = "kafka"
    secrets: ClassVar[tuple[SecretKeys, ...]] = (
        SecretKeys(
            field="sasl_plain_password", key="sasl_plain_password", file_key="sasl_plain_passwordfile"
        ),
    )

    listen: Flag = False
    server: Annotated[
        tuple[Annotated[str, Meta(pattern=r"\A[^\s/\x00-\x1f\x7f]*\Z")], ...],
        Meta(description='a list of servers, each "HOST:PORT"'),
        converted(_servers),
    ] = ()
    topic: Topic = "capture"
    group: Line | None = None
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

    def is_enabled(self) -> bool:
        """Whether requests are accepted from it."""
        return self.listen

    def uses_twisted_tls(self) -> bool:
        """It uses Python's."""
        return False

    def problems(self, settings: Settings) -> Iterator[Problem]:
        """Listening needs servers. TLS and SASL have all their keys, and the right protocol."""
        if self.listen and not self.server:
            yield Conflict(path="kafka.listen", others=("kafka.server",), rule="needs kafka.server")
        yield from self._tls_problems()
        yield from self._sasl_problems()

    def _tls_problems(self) -> Iterator[Problem]:
        uses_tls = self.security_protocol.endswith("SSL")
        for key in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
            if getattr(self, key) is not None and not uses_tls:
                yield Conflict(
                    path=f"kafka.{key}",
                    others=("kafka.security_protocol",),
                    rule="has no effect without kafka.security_protocol = 'SSL' or 'SASL_SSL'",
                )
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            yield Conflict(
                path="kafka.ssl_keyfile",
                others=("kafka.ssl_certfile",),
                rule="has no effect without kafka.ssl_certfile",
            )
        if self.ssl_certfile is None or not uses_tls:
            return
        key_file = self.ssl_keyfile or self.ssl_certfile
        if not is_key_of(self.ssl_certfile, key_file):
            yield Conflict(
                path="kafka.ssl_certfile" if self.ssl_keyfile is None else "kafka.ssl_keyfile",
                others=("kafka.ssl_keyfile", "kafka.ssl_certfile"),
                value=shown(key_file),
                rule="needs kafka.ssl_keyfile, because it doesn't contain the certificate's private key"
                if self.ssl_keyfile is None
                else "must contain the private key of the certificate in kafka.ssl_certfile",
            )

    def _sasl_problems(self) -> Iterator[Problem]:
        protocol, mechanism = self.security_protocol, self.sasl_mechanism
        logs_in = protocol.startswith("SASL_")
        if logs_in and mechanism is None:
            yield Conflict(
                path="kafka.security_protocol",
                others=("kafka.sasl_mechanism",),
                value=shown(protocol),
                rule="needs kafka.sasl_mechanism",
            )
        if mechanism is not None and not logs_in:
            yield Conflict(
                path="kafka.sasl_mechanism",
                others=("kafka.security_protocol",),
                rule="has no effect without kafka.security_protocol = 'SASL_SSL' or 'SASL_PLAINTEXT'",
            )
        by_password = mechanism is not None and mechanism != "OAUTHBEARER"
        username, password = self.sasl_plain_username, self.sasl_plain_password
        if by_password and (username is None or password is None):
            yield Conflict(
                path="kafka.sasl_mechanism",
                others=_LOGIN,
                value=shown(mechanism),
                rule="needs kafka.sasl_plain_username,"
                " and kafka.sasl_plain_password or sasl_plain_passwordfile",
            )
        if not by_password and not (username is None and password is None):
            yield Conflict(
                path=_USERNAME if username is not None else _PASSWORD,
                others=("kafka.sasl_mechanism", *_LOGIN),
                rule="has no effect without"
                " kafka.sasl_mechanism = 'PLAIN', 'SCRAM-SHA-256' or 'SCRAM-SHA-512'",
            )
        if mechanism == "OAUTHBEARER" and self.sasl_oauth_token_file is None:
            yield Conflict(
                path="kafka.sasl_mechanism",
                others=("kafka.sasl_oauth_tokenfile",),
                value=shown(mechanism),
                rule="needs kafka.sasl_oauth_tokenfile",
            )
        if mechanism != "OAUTHBEARER" and self.sasl_oauth_token_file is not None:
            yield Conflict(
                path="kafka.sasl_oauth_tokenfile",
                others=("kafka.sasl_mechanism",),
                rule="has no effect without kafka.sasl_mechanism = 'OAUTHBEARER'",
            )

    def build(self, context: BuildContext, sink: IRequestSink) -> IRequestSource:
        """The source."""
        from pcapsvc.net.kafka.security import KafkaSecurity
        from pcapsvc.sources.kafka.source import KafkaSource

        return KafkaSource(
            context.reactor,
            sink,
            servers=self.server,
            topic=self.topic,
            group=self.group,
            client_id=self.client_id,
            security=KafkaSecurity(
                security_protocol=self.security_protocol,
                ssl_cafile=self.ssl_cafile,
                ssl_certfile=self.ssl_certfile,
                ssl_keyfile=self.ssl_keyfile,
                ssl_check_hostname=self.ssl_check_hostname,
                sasl_mechanism=self.sasl_mechanism,
                sasl_plain_username=self.sasl_plain_username,
                sasl_plain_password=revealed(self.sasl_plain_password),
                sasl_oauth_token_file=self.sasl_oauth_token_file,
            ),
            wall_clock=context.wall_clock,
        )
