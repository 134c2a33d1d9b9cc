"""What goes wrong with a connection to Kafka, in words."""

from __future__ import annotations

import ssl

from kafka import errors as kafka_errors

from pcapsvc.net.kafka.security import Unreachable
from pcapsvc.net.kafka.token import UnusableToken
from pcapsvc.net.pem import UnusableCertificates


class MissingTopic(Exception):
    """The topic does not exist."""


def described(problem: Exception, topic: str, *, to: str) -> tuple[str, str]:
    """
    The kind of a problem, and the problem in our own words: others may contain a secret.

    @param to: what is to be done with the topic: C{read} or C{write to}.
    """
    if isinstance(problem, MissingTopic):
        return "topic", f"topic {topic!r} does not exist; it is not created"
    if isinstance(problem, Unreachable):
        return "connection", str(problem)
    if isinstance(problem, UnusableToken):
        return "token", str(problem)
    if isinstance(problem, kafka_errors.SaslAuthenticationFailedError):
        return "login", "authentication failed (wrong user name, password or token)"
    if isinstance(problem, kafka_errors.UnsupportedSaslMechanismError):
        return "login", "authentication failed (the servers do not support this sasl_mechanism)"
    if isinstance(problem, kafka_errors.TopicAuthorizationFailedError):
        return "rights", f"no permission to {to} topic {topic!r}"
    if isinstance(problem, kafka_errors.AuthorizationError):
        return "rights", f"a permission is missing ({type(problem).__name__})"
    if isinstance(problem, kafka_errors.KafkaTimeoutError):
        return "silence", "the servers accept connections, but do not answer properly"
    if isinstance(problem, kafka_errors.KafkaError):
        return type(problem).__name__, f"unexpected error ({type(problem).__name__})"
    if isinstance(problem, UnusableCertificates):
        return "tls", f"TLS can't be set up: ssl_cafile {problem.rule}"
    if isinstance(problem, ssl.SSLError):
        return "tls", "TLS can't be set up: a certificate or key file is wrong"
    if isinstance(problem, OSError):
        return "system", f"{problem.strerror or type(problem).__name__} ({problem.filename or 'network'})"
    return "unexpected", f"unexpected error ({type(problem).__name__})"
