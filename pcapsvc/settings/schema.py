"""
What the settings are: one structure per section of the TOML file.

A field's name in the file is given where it differs. Its type carries its
bounds, and the rule in words that a problem shows.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta, field

from pcapsvc.core.values import (
    S3_FIELDS,
    Acl,
    Bucket,
    Flag,
    Folder,
    InterfaceName,
    InterfaceNames,
    Region,
    one_of,
)
from pcapsvc.settings.secret import Secret

_MIB = 1024 * 1024
_MOST = 2**63 - 1

#: The longest snap length that libpcap takes (MAXIMUM_SNAPLEN in pcap-int.h).
MAX_SNAP_LENGTH = 262144


def _from(low: int, high: int, of: str = "a whole number") -> Meta:
    return Meta(ge=low, le=high, description=f"{of} from {low} to {high}")


_ONE_LINE = r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]"

Count = Annotated[int, _from(1, _MOST)]
Size = Annotated[int, _from(1, _MOST, "a whole number of bytes,")]
SnapLength = Annotated[int, _from(1, MAX_SNAP_LENGTH, "a whole number of bytes,")]
# A thousand million seconds are 31 years: far, and still a time that a clock can show.
Seconds = Annotated[int, _from(1, 10**9, "a whole number of seconds,")]
SecondsOrNone = Annotated[int, _from(0, 10**9, "a whole number of seconds,")]
Port = Annotated[int, _from(1, 65535)]
Line = Annotated[str, Meta(pattern=rf"\A{_ONE_LINE}+\Z", description="one line of text, not empty")]
Path = Annotated[str, Meta(pattern=r"\A[^\x00]+\Z", description="a path, not empty")]
Host = Annotated[
    str,
    Meta(
        pattern=r"\A(?!.*[\s/])[^\x00-\x20\x7f-\x9f]{1,255}\Z",
        description="a host name or address, without spaces and slashes",
    ),
]
# As in Kafka's own org.apache.kafka.common.internals.Topic.
Topic = Annotated[
    str,
    Meta(
        pattern=r"\A(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,249}\Z",
        description="at most 249 letters, digits, dots, underscores and hyphens, not '.' or '..'",
    ),
]


class General(msgspec.Struct, frozen=True, kw_only=True):
    """
    The section C{[general]}: limits, the local folder, and this node's name.

    @ivar max_request_age_seconds: how long ago a request may have been sent; L{None} is no bound.
    @ivar max_request_rate: how many requests a second each source may bring; L{None} is no bound.
    """

    max_packets: Count = field(name="maxpackets", default=50000)
    write_local: Flag = field(name="writelocal", default=False)
    local_dir: Path | None = field(name="localdir", default=None)
    snap_length: SnapLength = field(name="snaplength", default=512)
    default_timeout_seconds: Seconds = field(name="defaulttimeout", default=60)
    max_timeout_seconds: Seconds = field(name="maxtimeout", default=3600)
    max_duration_seconds: Seconds = field(name="maxduration", default=3600)
    max_bytes: Size = field(name="maxbytes", default=100_000_000)
    packet_debug: Flag = field(name="packetdebug", default=False)
    log_requests: Flag = field(name="logrequests", default=False)
    max_captures: Count = field(name="maxcaptures", default=32)
    max_memory_bytes: Size = field(name="maxmemory", default=1024 * _MIB)
    max_snap_length: SnapLength = field(name="maxsnaplength", default=MAX_SNAP_LENGTH)
    max_filter_characters: Count = field(name="maxfilter", default=512)
    promiscuous: Flag = True
    node_name: Host = field(name="nodename", default_factory=socket.gethostname)
    unknown_keys: Annotated[str, one_of("reject", "ignore")] = field(name="unknownkeys", default="reject")
    stop_timeout_seconds: Seconds = field(name="stoptimeout", default=20)
    max_request_age_seconds: SecondsOrNone | None = field(name="maxrequestage", default=60)
    max_request_rate: Annotated[int, _from(0, 10**6)] | None = field(name="maxrequestrate", default=100)
    exclude_self: Flag = field(name="excludeself", default=False)
    # An option only, as it was: no key of the file.
    panic: Flag = False


class Capture(msgspec.Struct, frozen=True, kw_only=True):
    """
    The section C{[capture]}: how the kernel hands packets over.

    @ivar standby: the interfaces on which a handle waits, open, for the next capture.
    """

    buffer_size_bytes: Annotated[int, _from(65536, 1024 * _MIB, "a whole number of bytes,")] = field(
        name="buffersize", default=8 * _MIB
    )
    # The idle time may be judged 2 × readtimeout + 8 ms late, and limits of time are to hold within 100 ms.
    read_timeout_ms: Annotated[int, _from(1, 40, "a whole number of milliseconds,")] = field(
        name="readtimeout", default=10
    )
    standby: InterfaceNames = ()


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """
    The section C{[delivery]}: how hard it is tried to bring captures to their destinations.

    @ivar timeout_seconds: how long one attempt may take; L{None} is no limit.
    @ivar concurrency: how many attempts may go on at once, for each destination.
    @ivar spool_dir: where captures wait that could not be delivered; L{None} for nowhere.
    @ivar spool_first: whether a capture is there, and no longer in memory, before it is first tried.
    @ivar spool_size_bytes: what may wait there in all.
    @ivar retry_interval_seconds: how often what waits there is tried again.
    """

    attempts: Count = 5
    first_delay_seconds: Seconds = field(name="firstdelay", default=1)
    max_delay_seconds: Seconds = field(name="maxdelay", default=60)
    timeout_seconds: SecondsOrNone | None = field(name="timeout", default=300)
    concurrency: Annotated[int, _from(1, 64)] = 4
    spool_dir: Path | None = field(name="spooldir", default=None)
    spool_first: Flag = field(name="spoolfirst", default=True)
    max_age_seconds: Seconds = field(name="maxage", default=86400)
    spool_size_bytes: Size = field(name="spoolsize", default=1024 * _MIB)
    retry_interval_seconds: Seconds = field(name="retryinterval", default=60)


class CloudShark(msgspec.Struct, frozen=True, kw_only=True):
    """
    The section C{[cloudshark]}.

    @ivar timeout_seconds: how long an upload may take; L{None} is no limit.
    @ivar verify: whether the server's certificate is verified, or the path of
        the certificates to verify it with.
    """

    host: Host = "localhost"
    scheme: Annotated[str, one_of("http", "https")] = "https"
    port: Port = 443
    timeout_seconds: SecondsOrNone | None = field(name="timeout", default=None)
    token: Secret | None = None
    upload: Flag = False
    verify: Annotated[bool | str, Meta(description="true, false, or a path of certificates")] = True


class Redis(msgspec.Struct, frozen=True, kw_only=True):
    """The section C{[redis]}."""

    listen: Flag = False
    host: Host = "localhost"
    port: Port = 6379
    channel: Line = "capture"
    username: Line | None = None
    auth: Secret | None = None
    tls: Flag = False
    ca_file: Path | None = field(name="cafile", default=None)


class Kafka(msgspec.Struct, frozen=True, kw_only=True):
    """
    The section C{[kafka]}. The keys of TLS and SASL are called as in kafka-python.

    @ivar group: the consumer group to share requests with; L{None} takes all of them.
    @ivar sasl_oauth_token_file: is read again for each connection, as tokens expire.
    """

    listen: Flag = False
    server: Annotated[
        tuple[Annotated[str, Meta(pattern=r"\A[^\s/\x00-\x1f\x7f]*\Z")], ...],
        Meta(description='a list of servers, each "HOST:PORT"'),
    ] = ()
    topic: Topic = "capture"
    group: Line | None = None
    client_id: Line = field(name="clientid", default="pcapsvc")
    security_protocol: Annotated[str, one_of("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")] = "PLAINTEXT"
    ssl_cafile: Path | None = None
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    ssl_check_hostname: Flag = True
    sasl_mechanism: (
        Annotated[str, one_of("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")] | None
    ) = None
    sasl_plain_username: Line | None = None
    sasl_plain_password: Secret | None = None
    sasl_oauth_token_file: Path | None = field(name="sasl_oauth_tokenfile", default=None)


class Sqs(msgspec.Struct, frozen=True, kw_only=True):
    """
    The section C{[sqs]}.

    @ivar endpoint: the service's URL; L{None} is Amazon's own.
    @ivar unmatched: what becomes of a message for another node.
    """

    listen: Flag = False
    region: Region | None = None
    access_id: Line | None = field(name="accessid", default=None)
    access_key: Secret | None = field(name="accesskey", default=None)
    url: (
        Annotated[
            str, Meta(pattern=r"\Ahttps?://[^\s@\x00-\x1f\x7f]+\Z", description="an http:// or https:// URL")
        ]
        | None
    ) = None
    endpoint: Line | None = None
    # Both as in the SQS API Reference, "ReceiveMessage".
    wait_seconds: Annotated[int, _from(0, 20, "a whole number of seconds,")] = field(
        name="waitseconds", default=20
    )
    chunk_size: Annotated[int, _from(1, 10)] = field(name="chunksize", default=10)
    unmatched: Annotated[str, one_of("release", "delete")] = "release"


class Syslog(msgspec.Struct, frozen=True, kw_only=True):
    """
    The section C{[syslog]}.

    @ivar priority: facility × 8 + severity (RFC 5424, section 6.2.1).
    """

    priority: Annotated[int, _from(0, 191)] = 85
    tag: Line = "pcapsvc"


class InterfaceAlias(msgspec.Struct, frozen=True, kw_only=True):
    """One C{[[interface]]}: the aliases that an interface answers to."""

    name: InterfaceName
    alias: Annotated[
        tuple[Line, ...], Meta(description="a list of aliases, each one line of text, not empty")
    ] = ()


class S3(msgspec.Struct, frozen=True, kw_only=True):
    """
    The section C{[s3]}.

    @ivar access_id: with L{access_key}, the credentials; without, they come from
        where Amazon's tools look for them.
    @ivar endpoint: the service's URL; L{None} is Amazon's own.
    @ivar overrides: what a request may set for itself.
    @ivar endpoints: the URLs that a request may name; empty is any.
    """

    upload: Flag = False
    access_id: Line | None = field(name="accessid", default=None)
    access_key: Secret | None = field(name="accesskey", default=None)
    endpoint: Line | None = None
    bucket: Bucket | None = None
    folder: Folder | None = None
    region: Region | None = None
    acl: Acl = "private"
    encryption: Flag = False
    overrides: Annotated[
        frozenset[Annotated[str, one_of(*S3_FIELDS)]],
        Meta(description=f"a list of any of {', '.join(S3_FIELDS)}"),
    ] = frozenset(S3_FIELDS)
    endpoints: Annotated[tuple[Line, ...], Meta(description="a list of endpoints")] = ()


class Http(msgspec.Struct, frozen=True, kw_only=True):
    """
    The section C{[http]}.

    @ivar listen: a server endpoint string of Twisted; L{None} does not listen.
    """

    listen: Line | None = None
    token: Secret | None = None


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the operator decides."""

    general: General = General()
    capture: Capture = Capture()
    delivery: Delivery = Delivery()
    cloudshark: CloudShark = CloudShark()
    redis: Redis = Redis()
    kafka: Kafka = Kafka()
    sqs: Sqs = Sqs()
    syslog: Syslog | None = None
    interfaces: tuple[InterfaceAlias, ...] = ()
    s3: S3 = S3()
    http: Http = Http()


#: The sections of the file that are one table each, by name.
SECTIONS: dict[str, type[msgspec.Struct]] = {
    "general": General,
    "capture": Capture,
    "delivery": Delivery,
    "cloudshark": CloudShark,
    "redis": Redis,
    "kafka": Kafka,
    "sqs": Sqs,
    "syslog": Syslog,
    "s3": S3,
    "http": Http,
}


@dataclass(frozen=True, kw_only=True)
class SecretKeys:
    """
    How a section names its secret.

    @ivar field: the field that holds it.
    @ivar key: the key that gives it; L{None} where only a file may.
    @ivar file_key: the key that gives the path of a file that holds it.
    """

    field: str
    key: str | None
    file_key: str


#: The secret of each section that has one.
SECRETS = {
    "cloudshark": SecretKeys(field="token", key="token", file_key="tokenfile"),
    "redis": SecretKeys(field="auth", key="auth", file_key="authfile"),
    "kafka": SecretKeys(
        field="sasl_plain_password", key="sasl_plain_password", file_key="sasl_plain_passwordfile"
    ),
    "sqs": SecretKeys(field="access_key", key="accesskey", file_key="accesskeyfile"),
    "s3": SecretKeys(field="access_key", key="accesskey", file_key="accesskeyfile"),
    "http": SecretKeys(field="token", key=None, file_key="tokenfile"),
}

_NOT_IN_THE_FILE = {("general", "panic")}


def keys_of(section: str) -> tuple[str, ...]:
    """The keys that a section of the file may hold, in the order in which they are declared."""
    structure = InterfaceAlias if section == "interface" else SECTIONS[section]
    secret = SECRETS.get(section)
    keys: list[str] = []
    for each in msgspec.structs.fields(structure):
        if secret is not None and each.name == secret.field:
            keys += [key for key in (secret.key, secret.file_key) if key is not None]
        elif (section, each.encode_name) not in _NOT_IN_THE_FILE:
            keys.append(each.encode_name)
    return tuple(keys)
