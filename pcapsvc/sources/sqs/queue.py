"""
The queue, by boto3: everything that blocks.

The numbers are from the Amazon SQS API Reference.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from pcapsvc.net.sqs.answer import has_failed_for_good
from pcapsvc.net.sqs.client import is_stale, lacks_credentials

# Ids are remembered and logged ("Amazon SQS queue and message identifiers": up to 100 characters).
_MAX_ID_CHARACTERS = 1024
# The same says 1,024.
_MAX_RECEIPT_CHARACTERS = 8192


class Message(msgspec.Struct, frozen=True, kw_only=True):
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


class Received(msgspec.Struct, frozen=True, kw_only=True):
    """
    The result of a poll.

    @ivar malformed: how many more messages there were, which lack required fields.
    """

    messages: list[Message]
    malformed: int = 0


class Step(msgspec.Struct, frozen=True, kw_only=True):
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
    A queue. The methods block. L{receive} and L{end} are called in one thread, L{settle} in that or another
    one; L{close} and L{take} are for any thread.
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
        self._making = threading.Lock()
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
            if not works or not is_stale(problem):
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
            if self._client is not None and lacks_credentials(problem):
                # A client that found none never looks again, and one that found a profile's keeps them.
                self._client.close()
                self._client = None
            raise

    def _connected(self) -> Any:
        # A client may be used by several threads at once, but is made only once.
        with self._making:
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
    # The receipt is no longer valid: the message is deleted, or another node has it.
    settled |= {failed.get("Id") for failed in filter(has_failed_for_good, answer.get("Failed") or ())}
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
