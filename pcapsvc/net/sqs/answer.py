"""
What passes for an answer of SQS.

botocore trusts the shape of an answer: it accepts any text as an empty one, and fails with a TypeError or an
AttributeError if a list or an object is anything else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pcapsvc.core.text import one_line

# The lists in the answers, and what is used of their items.
_LISTS = {
    "Messages": ("MessageId", "ReceiptHandle", "Body", "Attributes"),
    "Successful": ("Id",),
    "Failed": ("Id", "SenderFault"),
}
# The texts of an error.
_ERROR_TEXTS = ("__type", "message", "Message")


class ForeignAnswer(Exception):
    """Something other than SQS answered, such as a captive portal or a proxy."""


def check_answer(operation_model: Any, response_dict: Any, **_: Any) -> None:
    """
    Reduce an answer to what botocore can parse.

    @raise ForeignAnswer: if a success is not the answer of SQS: a JSON object that is empty, or has a member
        of the operation's output, and lists where SQS has lists.
    """
    if response_dict["status_code"] >= 300:
        response_dict["body"] = json.dumps(dict(_error(response_dict["body"]))).encode()
        return
    answer = _read(response_dict["body"])
    known = {"ResponseMetadata", *operation_model.output_shape.members}
    if (
        not isinstance(answer, dict)
        or (answer and known.isdisjoint(answer))
        or not all(isinstance(answer.get(name), list | None) for name in _LISTS)
    ):
        kind = one_line(str(response_dict["headers"].get("content-type", "")))
        raise ForeignAnswer(
            f"answered {response_dict['status_code']}, but not as SQS does ({kind or 'no type'})"
        )
    understood = {
        name: [_item(item, used) for item in answer[name]]
        for name, used in _LISTS.items()
        if answer.get(name) is not None
    }
    response_dict["body"] = json.dumps(understood).encode()


def _read(body: bytes) -> Any:
    """The value in JSON; L{None} if it is anything else."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _error(body: bytes) -> Iterator[tuple[str, str]]:
    """The texts of an error. A body that isn't JSON is the message."""
    try:
        answer = json.loads(body)
    except RecursionError:
        return
    except ValueError:
        if body:
            yield "message", body.decode("utf-8", "replace")
        return
    for name in _ERROR_TEXTS:
        if isinstance(answer, dict) and isinstance(answer.get(name), str):
            yield name, answer[name]


def _item(item: Any, used: tuple[str, ...]) -> dict[str, Any]:
    """What is used of an item. What isn't of its type is left out, as if it were missing."""
    if not isinstance(item, dict):
        return {}
    found = {name: item[name] for name in used if item.get(name) is not None}
    if not isinstance(found.get("Attributes", {}), dict):
        del found["Attributes"]
    if not isinstance(found.get("Id", ""), str):
        del found["Id"]
    return found
