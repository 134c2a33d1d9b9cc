"""
A client of SQS, and its errors in words.

The numbers are from the Amazon SQS API Reference.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from pcapsvc.core.endpoint import endpoint_url
from pcapsvc.net.sqs.answer import ForeignAnswer, check_answer

_CONNECT_SECONDS = 5

#: The longest answer that is read. The messages in one have up to 1 MiB together ("Amazon SQS message
#: quotas"), and up to three times as much in JSON.
MAX_ANSWER_BYTES = 4 * 1024 * 1024

# "Amazon SQS endpoints and quotas" in the AWS General Reference: current and legacy endpoints.
_AMAZON = re.compile(
    r"\A(?:sqs(?:-fips)?\.(?P<new>[a-z0-9-]+)\.(?:amazonaws\.com(?:\.cn)?|api\.aws)"
    r"|(?:(?P<old>[a-z0-9-]+)\.)?queue\.amazonaws\.com(?:\.cn)?)\Z"
)
# An endpoint of PrivateLink: requests must go to its own host.
_PRIVATE = re.compile(r"\.sqs\.(?P<region>[a-z0-9-]+)\.vpce\.amazonaws\.com(?:\.cn)?\Z")

# Credentials that are outdated (SQS API Reference, "Common error types"), and how SQS's JSON protocol and
# compatible services call them.
_STALE_CODES = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSecurity",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)


class Unsettled(Exception):
    """The queue answered, but did not delete or return messages."""


def is_amazon(host: str) -> bool:
    """Whether a host is one of Amazon's for SQS, of any region or account."""
    return bool(_AMAZON.search(host) or _PRIVATE.search(host))


def locate(url: str, region: str | None, endpoint: str | None) -> tuple[str | None, str | None]:
    """
    The region and the endpoint of a queue.

    @param region: as configured; L{None} if it isn't. Likewise C{endpoint}.

    @return: the region, L{None} if the URL has none; and the endpoint, L{None} if it is Amazon's public one.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    amazon, private = _AMAZON.search(host), _PRIVATE.search(host)
    if amazon is not None:
        named = amazon["new"] or amazon["old"] or "us-east-1"
    else:
        named = None if private is None else private["region"]
        endpoint = endpoint or f"{parts.scheme}://{parts.netloc}"
    return region or named, endpoint


def make_boto3_client(
    url: str,
    region: str | None,
    endpoint: str | None,
    access_id: str | None,
    access_key: str | None,
    read_seconds: float,
) -> Any:
    """
    A client of SQS that tries each call once.

    @param url: the queue's URL, for what C{region} and C{endpoint} leave open.
    @param access_id: with C{access_key}, the credentials; L{None} looks them up where Amazon's tools do.
    @param read_seconds: how long the service may be silent before or within an answer, and how long the whole
        answer may take.
    """
    from botocore.config import Config

    from pcapsvc.bounded.boto_answers import bound_answers
    from pcapsvc.net.boto_session import boto_session

    region, endpoint = locate(url, region, endpoint_url(endpoint) if endpoint else None)
    session = boto_session(access_id, access_key)
    client = session.client(
        "sqs",
        endpoint_url=endpoint,
        # Signatures need a region. Services without regions expect this one.
        region_name=region or session.region_name or "us-east-1",
        config=Config(
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=read_seconds,
            # The source itself retries: boto3 would block the thread between attempts.
            retries={"mode": "standard", "total_max_attempts": 1},
            tcp_keepalive=True,
        ),
    )
    bound_answers(client, most_bytes=MAX_ANSWER_BYTES, seconds=read_seconds)
    client.meta.events.register("before-parse.sqs", check_answer)
    return client


def is_stale(problem: Exception) -> bool:
    """Whether a call failed because the service had closed a connection that was kept for it."""
    from botocore.exceptions import ConnectionClosedError

    from pcapsvc.bounded.boto_answers import why_cut_off

    return isinstance(problem, ConnectionClosedError) and why_cut_off(problem) is None


def lacks_credentials(problem: Exception) -> bool:
    """Whether a call failed because no credentials were found, or the service says that they are outdated."""
    from botocore import exceptions

    if isinstance(problem, exceptions.ClientError):
        return problem.response.get("Error", {}).get("Code") in _STALE_CODES
    return isinstance(problem, exceptions.NoCredentialsError | exceptions.CredentialRetrievalError)


def described(problem: Exception) -> tuple[str, str]:
    """The kind of a problem, which is logged once, and the problem in words."""
    from botocore import exceptions

    from pcapsvc.bounded.boto_answers import connection_words, why_cut_off

    if (limit := why_cut_off(problem)) is not None:
        return "limit", limit
    if isinstance(problem, exceptions.ClientError):
        error = problem.response.get("Error", {})
        code, message = str(error.get("Code", "")), str(error.get("Message", ""))
        status = problem.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        words = ": ".join(part for part in (code, message) if part)
        return code or str(status), f"the server answered {words or status}"
    if isinstance(problem, exceptions.SSLError):
        return "tls", str(problem)
    if isinstance(problem, exceptions.HTTPClientError | OSError):
        return "connection", str(problem)
    if isinstance(problem, exceptions.BotoCoreError | Unsettled | ForeignAnswer):
        return type(problem).__name__, connection_words(problem)
    # Its own words may contain a secret, or anything that a server sent.
    return "unexpected", f"unexpected error ({type(problem).__name__})"
