"""The rules between settings: those that no value breaks alone."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from pcapsvc.core.errors import Problem, shown
from pcapsvc.settings.files import is_key_of
from pcapsvc.settings.listen import read_listener
from pcapsvc.settings.schema import Kafka, Settings


class _Rule(NamedTuple):
    """
    One rule.

    @ivar keys: the paths that it looks at; a problem stands at the first.
    @ivar rule: in words.
    @ivar value: the first one's value, where it tells something.
    """

    holds: bool
    keys: tuple[str, ...]
    rule: str
    value: Any = None


def broken_rules(settings: Settings, told: Collection[str]) -> list[Problem]:
    """
    The rules that the settings break.

    @param told: the paths that have a problem already. A rule that looks at one
        of them is passed over: nobody knows what its value was meant to be.
    """
    known = {*told}
    return [
        Problem(path=rule.keys[0], value=None if rule.value is None else shown(rule.value), rule=rule.rule)
        for rule in (
            *_ways_in_and_out(settings),
            *_limits(settings),
            *_needs(settings),
            *_kafka(settings.kafka),
        )
        if not rule.holds and not any(key in known or key.partition(".")[0] in known for key in rule.keys)
    ]


def _ways_in_and_out(settings: Settings) -> Iterator[_Rule]:
    listening = (settings.redis.listen, settings.kafka.listen, settings.sqs.listen)
    yield _Rule(
        any(listening) or settings.http.listen is not None,
        ("redis.listen", "kafka.listen", "sqs.listen", "http.listen"),
        "at least one source must be enabled: redis.listen, kafka.listen, sqs.listen or http.listen",
    )
    yield _Rule(
        settings.general.write_local or settings.cloudshark.upload or settings.s3.upload,
        ("general.writelocal", "cloudshark.upload", "s3.upload"),
        "at least one destination must be enabled: general.writelocal, cloudshark.upload or s3.upload",
    )


def _limits(settings: Settings) -> Iterator[_Rule]:
    general = settings.general
    for low, low_value, high, high_value in (
        ("defaulttimeout", general.default_timeout_seconds, "maxtimeout", general.max_timeout_seconds),
        ("snaplength", general.snap_length, "maxsnaplength", general.max_snap_length),
        ("maxbytes", general.max_bytes, "maxmemory", general.max_memory_bytes),
    ):
        yield _Rule(
            low_value <= high_value,
            (f"general.{low}", f"general.{high}"),
            f"must be at most general.{high}, which is {high_value}",
            low_value,
        )
    delivery = settings.delivery
    yield _Rule(
        delivery.first_delay_seconds <= delivery.max_delay_seconds,
        ("delivery.firstdelay", "delivery.maxdelay"),
        f"must be at most delivery.maxdelay, which is {delivery.max_delay_seconds}",
        delivery.first_delay_seconds,
    )
    yield _Rule(
        delivery.spool_dir is None or general.max_bytes < delivery.spool_size_bytes,
        ("delivery.spoolsize", "delivery.spooldir", "general.maxbytes"),
        f"must be more than general.maxbytes, which is {general.max_bytes}",
        delivery.spool_size_bytes,
    )
    yield _Rule(
        delivery.spool_dir is None or delivery.spool_dir != general.local_dir,
        ("delivery.spooldir", "general.localdir"),
        "must be another folder than general.localdir",
        delivery.spool_dir,
    )


def _needs(settings: Settings) -> Iterator[_Rule]:
    general, cloudshark, redis, s3 = settings.general, settings.cloudshark, settings.redis, settings.s3
    yield _Rule(
        general.local_dir is not None or not general.write_local,
        ("general.writelocal", "general.localdir"),
        "needs a folder: general.localdir, or --destdir",
    )
    yield _Rule(
        cloudshark.token is not None or not cloudshark.upload,
        ("cloudshark.upload", "cloudshark.token", "cloudshark.tokenfile"),
        "needs cloudshark.token or cloudshark.tokenfile",
    )
    yield _Rule(
        redis.auth is not None or redis.username is None,
        ("redis.username", "redis.auth", "redis.authfile"),
        "needs redis.auth or redis.authfile",
    )
    yield _Rule(
        redis.tls or redis.ca_file is None,
        ("redis.cafile", "redis.tls"),
        "means nothing without redis.tls = true",
    )
    yield from _certificate_names(settings)
    yield _Rule(
        s3.bucket is not None or "bucket" in s3.overrides or not s3.upload,
        ("s3.upload", "s3.bucket", "s3.overrides"),
        "needs s3.bucket, or 'bucket' among s3.overrides",
    )
    for name, access_id, access_key in (
        ("s3", s3.access_id, s3.access_key),
        ("sqs", settings.sqs.access_id, settings.sqs.access_key),
    ):
        yield _Rule(
            (access_id is None) == (access_key is None),
            (f"{name}.accessid", f"{name}.accesskey", f"{name}.accesskeyfile"),
            f"and {name}.accesskey (or accesskeyfile) must be given together, or neither",
        )
    yield _Rule(
        settings.sqs.url is not None or not settings.sqs.listen,
        ("sqs.listen", "sqs.url"),
        "needs sqs.url",
    )
    listen = settings.http.listen
    if listen is not None:
        yield _Rule(
            settings.http.token is not None or read_listener(listen).local,
            ("http.listen", "http.tokenfile"),
            "needs http.tokenfile, for it is neither on a loopback address nor a unix socket",
            listen,
        )


def _certificate_names(settings: Settings) -> Iterator[_Rule]:
    """A server's certificate must be for the host's name, so that must be one that a certificate can have."""
    redis, cloudshark = settings.redis, settings.cloudshark
    for keys, host, verified in (
        (("redis.host", "redis.tls"), redis.host, redis.listen and redis.tls),
        (
            ("cloudshark.host", "cloudshark.scheme", "cloudshark.verify"),
            cloudshark.host,
            cloudshark.upload and cloudshark.scheme == "https" and cloudshark.verify is not False,
        ),
    ):
        # An IPv6 address may stand in brackets, as in a URL.
        problem = _certificate_name_problem(host.strip("[]")) if verified else None
        yield _Rule(
            problem is None,
            keys,
            f"must be a name that a certificate can have, or an address, as TLS is asked for ({problem})",
            host,
        )


def _certificate_name_problem(host: str) -> str | None:
    """Why no certificate can be for a host (RFC 9525, section 2; RFC 5891, section 4), if none can."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return None
    # Imported here: a configuration without TLS does without its tables.
    import idna

    try:
        idna.encode(host)
    except idna.IDNAError as error:
        return str(error)
    return None


def _kafka(kafka: Kafka) -> Iterator[_Rule]:
    protocol, mechanism = kafka.security_protocol, kafka.sasl_mechanism
    yield _Rule(
        bool(kafka.server) or not kafka.listen,
        ("kafka.listen", "kafka.server"),
        "needs kafka.server",
    )
    yield _Rule(
        mechanism is not None or not protocol.startswith("SASL_"),
        ("kafka.security_protocol", "kafka.sasl_mechanism"),
        "needs kafka.sasl_mechanism",
        protocol,
    )
    yield _Rule(
        mechanism is None or protocol.startswith("SASL_"),
        ("kafka.sasl_mechanism", "kafka.security_protocol"),
        "means nothing without kafka.security_protocol = 'SASL_SSL' or 'SASL_PLAINTEXT'",
    )
    for key, value in (
        ("ssl_cafile", kafka.ssl_cafile),
        ("ssl_certfile", kafka.ssl_certfile),
        ("ssl_keyfile", kafka.ssl_keyfile),
    ):
        yield _Rule(
            value is None or protocol.endswith("SSL"),
            (f"kafka.{key}", "kafka.security_protocol"),
            "means nothing without kafka.security_protocol = 'SSL' or 'SASL_SSL'",
        )
    yield _Rule(
        kafka.ssl_certfile is not None or kafka.ssl_keyfile is None,
        ("kafka.ssl_keyfile", "kafka.ssl_certfile"),
        "means nothing without kafka.ssl_certfile",
    )
    if kafka.ssl_certfile is not None and protocol.endswith("SSL"):
        key = "ssl_certfile" if kafka.ssl_keyfile is None else "ssl_keyfile"
        yield _Rule(
            is_key_of(kafka.ssl_certfile, kafka.ssl_keyfile or kafka.ssl_certfile),
            (f"kafka.{key}", "kafka.ssl_keyfile", "kafka.ssl_certfile"),
            "needs kafka.ssl_keyfile, for it doesn't hold the certificate's private key"
            if kafka.ssl_keyfile is None
            else "must hold the private key of the certificate in kafka.ssl_certfile",
            kafka.ssl_keyfile or kafka.ssl_certfile,
        )
    by_password = mechanism is not None and mechanism != "OAUTHBEARER"
    username, password = kafka.sasl_plain_username, kafka.sasl_plain_password
    keys = ("kafka.sasl_plain_username", "kafka.sasl_plain_password", "kafka.sasl_plain_passwordfile")
    yield _Rule(
        not by_password or (username is not None and password is not None),
        ("kafka.sasl_mechanism", *keys),
        "needs kafka.sasl_plain_username, and kafka.sasl_plain_password or sasl_plain_passwordfile",
        mechanism,
    )
    yield _Rule(
        by_password or (username is None and password is None),
        (keys[0] if username is not None else keys[1], "kafka.sasl_mechanism", *keys),
        "means nothing without kafka.sasl_mechanism = 'PLAIN', 'SCRAM-SHA-256' or 'SCRAM-SHA-512'",
    )
    yield _Rule(
        mechanism != "OAUTHBEARER" or kafka.sasl_oauth_token_file is not None,
        ("kafka.sasl_mechanism", "kafka.sasl_oauth_tokenfile"),
        "needs kafka.sasl_oauth_tokenfile",
        mechanism,
    )
    yield _Rule(
        mechanism == "OAUTHBEARER" or kafka.sasl_oauth_token_file is None,
        ("kafka.sasl_oauth_tokenfile", "kafka.sasl_mechanism"),
        "means nothing without kafka.sasl_mechanism = 'OAUTHBEARER'",
    )
