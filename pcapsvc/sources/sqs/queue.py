"""
The queue, by boto3: everything that blocks, and the errors in words.

The numbers are from the Amazon SQS API Reference.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pcapsvc.core.endpoint import endpoint_url
from pcapsvc.sources.sqs.answer import ForeignAnswer, check_answer

_CONNECT_SECONDS = 5

#: The longest answer that is read. The messages in one have up to 1 MiB together ("Amazon SQS message
#: quotas"), and up to three times as much in JSON.
MAX_ANSWER_BYTES = 8 * 1024 * 1024

# "Amazon SQS endpoints and quotas" in the AWS General Reference: current and legacy endpoints.
_AMAZON = re.compile(
    r"\A(?:sqs(?:-fips)?\.(?P<new>[a-z0-9-]+)\.(?:amazonaws\.com(?:\.cn)?|api\.aws)"
    r"|(?:(?P<old>[a-z0-9-]+)\.)?queue\.amazonaws\.com(?:\.cn)?)\Z"
)
# An endpoint of PrivateLink: requests must go to its own host.
_PRIVATE = re.compile(r"\.sqs\.(?P<region>[a-z0-9-]+)\.vpce\.amazonaws\.com(?:\.cn)?\Z")

# Ids are remembered and logged ("Amazon SQS queue and message identifiers": up to 100 characters).
_MAX_ID_CHARACTERS = 1024
# The same says 1,024.
_MAX_RECEIPT_CHARACTERS = 8192


class Unsettled(Exception):
    """The queue answered, but did not delete or return messages."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """
    A message that was received.

    @ivar sent_at: in seconds since the Unix epoch, by the queue's clock; L{None} if it doesn't say.
    @ivar received_times: how often it was received by any node, including this time.
    """

    message_id: str
    receipt: str
    body: str
    sent_at: float | None
    received_times: int


@dataclass(frozen=True, kw_only=True)
class Received:
    """
    The result of a poll.

    @ivar malformed: how many more messages there were, which lack required fields.
    """

    messages: list[Message]
    malformed: int = 0


@dataclass(frozen=True, kw_only=True)
class Step:
    """
    What happens to a message in the queue.

    @ivar hide_seconds: the visibility timeout with which it is returned; L{None} deletes it.
    @ivar elsewhere: whether it is returned for another node.
    """

    message: Message
    hide_seconds: int | None
    elsewhere: bool = False


class Queue:
    """
    A queue. The methods block, and are called in one thread; only L{close} and L{take} are for any thread.
    """

    def __init__(
        self,
        make_client: Callable[[], Any],
        url: str,
        *,
        wait_seconds: int,
        chunk_size: int,
        hidden_seconds: int,
    ) -> None:
        self._make_client = make_client
        self._url = url
        self._wait_seconds = wait_seconds
        self._chunk_size = chunk_size
        self._hidden_seconds = hidden_seconds
        self._lock = threading.Lock()
        self._closed = False
        self._untaken: list[Message] = []
        self._client: Any = None
        self._works = False

    def close(self) -> None:
        """Return messages that were received but not taken, and those that will be received."""
        with self._lock:
            self._closed = True

    def take(self) -> bool:
        """Take over the messages that were received last; false if the queue is closed."""
        with self._lock:
            if self._closed:
                return False
            self._untaken = []
            return True

    def receive(self) -> Received:
        """
        Wait for messages, and receive them.

        @raise Exception: whatever the client raises.
        """
        if self._is_closed():
            return Received(messages=[])
        # The first request is no long poll: it shows soon whether the queue exists.
        wait_seconds = self._wait_seconds if self._works else 0
        works, self._works = self._works, False
        try:
            answer = self._ask(wait_seconds)
        except Exception as problem:
            if not works or not _is_stale(problem):
                raise
            # A kept connection has died in the meantime.
            answer = self._ask(0)
        self._works = True
        found = [_message(raw) for raw in answer.get("Messages") or ()]
        messages = [message for message in found if message is not None]
        with self._lock:
            self._untaken = messages
        # If it is closed after this, L{end} returns the messages.
        if self._is_closed():
            self._give_back()
            return Received(messages=[])
        return Received(messages=messages, malformed=len(found) - len(messages))

    def settle(self, steps: Sequence[Step]) -> list[Step]:
        """
        Delete messages, or return them to the queue.

        @param steps: up to 10.

        @return: those that are worth another attempt.

        @raise Exception: whatever the client raises.
        """
        client = self._connected()
        left: list[Step] = []
        deleted = [step for step in steps if step.hide_seconds is None]
        if deleted:
            answer = client.delete_message_batch(QueueUrl=self._url, Entries=_entries(deleted))
            left += _worth_another_try(answer, deleted)
        hidden = [step for step in steps if step.hide_seconds is not None]
        if hidden:
            answer = client.change_message_visibility_batch(QueueUrl=self._url, Entries=_entries(hidden))
            left += _worth_another_try(answer, hidden)
        return left

    def end(self) -> None:
        """Return what is left, and close the connections."""
        self._give_back()
        if self._client is not None:
            self._client.close()
            self._client = None

    def _give_back(self) -> None:
        with self._lock:
            messages, self._untaken = self._untaken, []
        if messages:
            # If this fails, they become visible after their timeout.
            self.settle([Step(message=message, hide_seconds=0) for message in messages])

    def _is_closed(self) -> bool:
        with self._lock:
            return self._closed

    def _ask(self, wait_seconds: int) -> Any:
        names = ["SentTimestamp", "ApproximateReceiveCount"]
        try:
            return self._connected().receive_message(
                QueueUrl=self._url,
                WaitTimeSeconds=wait_seconds,
                MaxNumberOfMessages=self._chunk_size,
                VisibilityTimeout=self._hidden_seconds,
                MessageSystemAttributeNames=names,
                # The old name, for servers that don't know the new one.
                AttributeNames=names,
            )
        except Exception as problem:
            if self._client is not None and _lacks_credentials(problem):
                # A client that found no credentials never looks again.
                self._client.close()
                self._client = None
            raise

    def _connected(self) -> Any:
        if self._client is None:
            self._client = self._make_client()
        return self._client


def _entries(steps: Sequence[Step]) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for number, step in enumerate(steps):
        entries.append({"Id": str(number), "ReceiptHandle": step.message.receipt})
        if step.hide_seconds is not None:
            entries[-1]["VisibilityTimeout"] = step.hide_seconds
    return entries


def _worth_another_try(answer: Any, steps: Sequence[Step]) -> list[Step]:
    """Those that the answer reports neither as done, nor as impossible."""
    settled = {done.get("Id") for done in answer.get("Successful") or ()}
    # SenderFault means that the receipt is no longer valid: the message is deleted, or another node has it.
    settled |= {failed.get("Id") for failed in answer.get("Failed") or () if failed.get("SenderFault")}
    return [step for number, step in enumerate(steps) if str(number) not in settled]


def _message(raw: Any) -> Message | None:
    """The message; L{None} if it is malformed."""
    message_id, receipt, body = raw.get("MessageId"), raw.get("ReceiptHandle"), raw.get("Body") or ""
    if not all(isinstance(text, str) for text in (message_id, receipt, body)):
        return None
    if len(message_id) > _MAX_ID_CHARACTERS or len(receipt) > _MAX_RECEIPT_CHARACTERS:
        return None
    attributes = raw.get("Attributes") or {}
    sent_ms = _whole(attributes.get("SentTimestamp"))
    return Message(
        message_id=message_id,
        receipt=receipt,
        body=body,
        sent_at=None if sent_ms is None else sent_ms / 1000,
        received_times=_whole(attributes.get("ApproximateReceiveCount")) or 1,
    )


def _whole(value: object) -> int | None:
    # Compatible services may send these as numbers, or malformed.
    return int(str(value)) if re.fullmatch("[0-9]{1,20}", str(value)) else None


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
    import boto3.session
    from botocore.config import Config

    from pcapsvc.net.boto_exchange import bound_answers

    region, endpoint = locate(url, region, endpoint_url(endpoint) if endpoint else None)
    session = boto3.session.Session(aws_access_key_id=access_id, aws_secret_access_key=access_key)
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


def _is_stale(problem: Exception) -> bool:
    from botocore.exceptions import ConnectionClosedError

    from pcapsvc.net.boto_exchange import why_cut_off

    return isinstance(problem, ConnectionClosedError) and why_cut_off(problem) is None


def _lacks_credentials(problem: Exception) -> bool:
    from botocore import exceptions

    return isinstance(problem, exceptions.NoCredentialsError | exceptions.CredentialRetrievalError)


def described(problem: Exception) -> tuple[str, str]:
    """The kind of a problem, which is logged once, and the problem in words."""
    from botocore import exceptions

    from pcapsvc.net.boto_exchange import why_cut_off

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
        return type(problem).__name__, str(problem)
    # Its own words may contain a secret, or anything that a server sent.
    return "unexpected", f"unexpected error ({type(problem).__name__})"
