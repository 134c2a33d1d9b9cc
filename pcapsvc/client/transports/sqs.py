"""Queues of Amazon SQS, by the synchronous client that the daemon uses as well."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from pcapsvc.client.address import SqsAddress
from pcapsvc.client.credentials import Credentials
from pcapsvc.client.lost import tls_words
from pcapsvc.client.status import NoAnswer, not_understood
from pcapsvc.core.text import one_line

_CONNECT_SECONDS = 5
_WAIT_SECONDS = 5
# How long an answer may take, and how long it may be. Ten messages have up to 256 KiB each.
_ANSWER_SECONDS = _WAIT_SECONDS + 10
_MOST_ANSWER_BYTES = 16 * 1024 * 1024
# How long an event of somebody else's is hidden from this reader, and from its own.
_HIDDEN_SECONDS = 2

# "Amazon SQS endpoints and quotas" in the AWS General Reference.
_AMAZON = re.compile(r"(?:\A|\.)sqs(?:-fips)?\.(?P<region>[a-z0-9-]+)\.")


class SqsTransport:
    """A queue. See L{pcapsvc.client.transport.ITransport}."""

    def __init__(self, address: SqsAddress, credentials: Credentials) -> None:
        self._address = address
        self._credentials = credentials

    def send(self, body: bytes) -> int | None:
        """Send a message."""
        extra: dict[str, str] = {}
        if self._address.url.endswith(".fifo"):
            # Requests may overtake each other, and no two of them are the same.
            import uuid

            extra = {"MessageGroupId": uuid.uuid4().hex, "MessageDeduplicationId": uuid.uuid4().hex}
        with _problems(self._address):
            self._client().send_message(QueueUrl=self._address.url, MessageBody=body.decode(), **extra)
        return None

    def events(self, requestid: str | None) -> SqsEvents:
        """Receive events. What is received is deleted; with C{requestid}, all others are returned."""
        with _problems(self._address):
            client = self._client()
            client.get_queue_attributes(QueueUrl=self._address.url, AttributeNames=["QueueArn"])
        return SqsEvents(self._address, client, requestid)

    def _client(self) -> Any:
        import boto3.session
        from botocore.config import Config

        from pcapsvc.bounded.boto_answers import bound_answers

        parts = urlsplit(self._address.url)
        session = boto3.session.Session()
        amazon = _AMAZON.search(parts.hostname or "")
        client = session.client(
            "sqs",
            # If no file is named, the library looks for one, as Amazon's tools do.
            verify=self._credentials.ca_path,
            endpoint_url=f"{parts.scheme}://{parts.netloc}",
            # Signatures need a region. Services without regions expect this one.
            region_name=(amazon and amazon["region"]) or session.region_name or "us-east-1",
            config=Config(
                connect_timeout=_CONNECT_SECONDS,
                read_timeout=_ANSWER_SECONDS,
                retries={"mode": "standard", "total_max_attempts": 2},
            ),
        )
        bound_answers(client, most_bytes=_MOST_ANSWER_BYTES, seconds=_ANSWER_SECONDS)
        return client


class SqsEvents:
    """The messages of a queue. See L{pcapsvc.client.transport.IEventStream}."""

    def __init__(self, address: SqsAddress, client: Any, requestid: str | None) -> None:
        self._address = address
        self._client = client
        self._requestid = requestid
        self._closed = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        url = self._address.url
        while not self._closed.is_set():
            with _problems(self._address):
                messages = self._client.receive_message(
                    QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=_WAIT_SECONDS
                ).get("Messages", [])
                ours = [message for message in messages if self._is_ours(message["Body"])]
                self._batch("delete_message_batch", ours)
                others = [message for message in messages if message not in ours]
                self._batch("change_message_visibility_batch", others, VisibilityTimeout=_HIDDEN_SECONDS)
            # Half of a surrogate pair in one of them must not cost the others.
            yield from (message["Body"].encode("utf-8", "surrogatepass") for message in ours)

    def close(self) -> None:
        """End it, after the poll that is under way."""
        self._closed.set()

    def _is_ours(self, body: str) -> bool:
        if self._requestid is None:
            return True
        try:
            return bool(json.loads(body)["data"].get("requestid") == self._requestid)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return False

    def _batch(self, method: str, messages: list[Any], **more: Any) -> None:
        if messages:
            entries = [
                {"Id": str(number), "ReceiptHandle": message["ReceiptHandle"], **more}
                for number, message in enumerate(messages)
            ]
            getattr(self._client, method)(QueueUrl=self._address.url, Entries=entries)


@contextlib.contextmanager
def _problems(address: SqsAddress) -> Iterator[None]:
    """Turns what the library raises into L{NoAnswer}."""
    from botocore.exceptions import BotoCoreError, ClientError

    from pcapsvc.bounded.boto_answers import connection_words, why_cut_off

    try:
        yield
    except NoAnswer:
        raise
    except (BotoCoreError, ClientError, OSError) as problem:
        words = why_cut_off(problem) or tls_words(problem) or connection_words(problem)
        raise NoAnswer(f"{address}: {one_line(words)}") from None
    except Exception as problem:  # noqa: BLE001 - of whatever kind
        raise not_understood(address, problem) from None
