"""Encryption and authentication of connections to Kafka."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass  # noqa: TID251 - secrets are left out of its repr

from pcapsvc.net.pem import read_certificates

#: How long a server has to accept a connection.
CONNECT_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True, repr=False)
class KafkaSecurity:
    """
    Encryption and authentication. The names are kafka-python's, except for the last.

    @ivar sasl_oauth_token_file: the path of a file with a token. It is read for each connection.
    """

    security_protocol: str = "PLAINTEXT"
    ssl_cafile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_check_hostname: bool = True
    sasl_mechanism: str | None = None
    sasl_plain_username: str | None = None
    sasl_plain_password: str | None = None
    sasl_oauth_token_file: str | None = None


class Unreachable(Exception):
    """No server can be connected to; the message says why."""


def tls_context(security: KafkaSecurity) -> ssl.SSLContext | None:
    """How to verify servers, and the client's own certificate; L{None} without TLS."""
    if not security.security_protocol.endswith("SSL"):
        return None
    if security.ssl_cafile is None:
        context = ssl.create_default_context()
    else:
        authorities = b"".join(read_certificates(security.ssl_cafile, bytes))
        context = ssl.create_default_context(cadata=authorities)
        # As Python does since 3.13: trust each certificate in the file, not only self-signed ones.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.check_hostname = security.ssl_check_hostname
    if security.ssl_certfile is not None:
        # Without a password, OpenSSL would prompt for one on the terminal.
        context.load_cert_chain(security.ssl_certfile, security.ssl_keyfile, password="")
    return context


def reach_any(servers: Sequence[str], context: ssl.SSLContext | None) -> None:
    """
    Connect to the first server that accepts a connection, and disconnect.

    @raise Unreachable: if none does; the message is about the last one.
    """
    reason = "no server is configured"
    for server in servers:
        host, _, port = server.rpartition(":")
        host = host.strip("[]")
        try:
            with socket.create_connection((host, int(port)), CONNECT_SECONDS) as plain:
                if context is not None:
                    context.wrap_socket(plain, server_hostname=host).close()
            return
        except ssl.SSLError as problem:
            words = getattr(problem, "verify_message", None) or getattr(problem, "reason", None)
            reason = f"can't connect to {server}: TLS failed: {words or 'the connection was cut'}"
        except (OSError, UnicodeError) as problem:
            reason = f"can't connect to {server}: {getattr(problem, 'strerror', None) or problem}"
    raise Unreachable(reason)
