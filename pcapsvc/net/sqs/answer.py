"""
Validates and reduces answers of SQS.

botocore trusts the shape of an answer: it accepts any text as an empty one, and fails with a TypeError or an
AttributeError if a list or an object is anything else.

JSON is read by libraries that hold Python's lock until they are done, in whichever thread: 8 MB of small
lists would keep captures waiting for 10 s. So what is not used is skipped, and no object is made of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Raw

from pcapsvc.core.body import without_halves
from pcapsvc.core.text import one_line

# Of each list, what is used of its items.
_LISTS = {
    "Messages": ("MessageId", "ReceiptHandle", "Body", "Attributes"),
    "Successful": ("Id",),
    "Failed": ("Id", "SenderFault", "Code"),
}
# The texts of an error.
_ERROR_TEXTS = ("__type", "message", "Message")
# How much of such a text is kept, in characters. It is logged on one line.
_MOST_ERROR_CHARACTERS = 4096
# The longest UTF-8 of a character, in bytes (RFC 3629).
_CHARACTER_BYTES = 4
# Of attributes, which are numbers.
_MOST_ATTRIBUTE_BYTES = 64
# What counts as the sender's fault, and passes: SQS or KMS has too much to do, or an operator has to restore
# the key with which KMS encrypts the queue (SQS API Reference, "SendMessage", "Errors").
_PASSING = re.compile("throttl|overlimit|kms", re.IGNORECASE)

# Stands for half of a surrogate pair, as C{re} has templates.
_REPLACEMENT = rb"\\ufffd"

_EMPTY = re.compile(rb"\s*\{\s*\}\s*")


def _object_with(name: str, members: tuple[str, ...]) -> Any:
    """Reads an object as some of its members, each as it is in the JSON; those that are missing are empty."""
    fields: list[Any] = [(f"at{place}", Raw, Raw()) for place in range(len(members))]
    names = {f"at{place}": member for place, member in enumerate(members)}
    return msgspec.json.Decoder(msgspec.defstruct(name, fields, rename=names.__getitem__))


_ANSWER = _object_with("Answer", (*_LISTS, "ResponseMetadata"))
_ITEMS = {name: _object_with(name, used) for name, used in _LISTS.items()}
_ATTRIBUTES = _object_with("Attributes", ("SentTimestamp", "ApproximateReceiveCount"))
_ERROR = _object_with("Error", _ERROR_TEXTS)
# A list has up to ten items. Any others are skipped.
_LIST = msgspec.json.Decoder(
    msgspec.defstruct("Items", [(f"at{place}", Raw, Raw()) for place in range(10)], array_like=True)
)


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
    try:
        understood = _understood(response_dict["body"], operation_model.output_shape.members)
    except _Odd:
        kind = one_line(str(response_dict["headers"].get("content-type", "")))
        raise ForeignAnswer(
            f"answered {response_dict['status_code']}, but not as SQS does ({kind or 'no type'})"
        ) from None
    response_dict["body"] = json.dumps(understood).encode()


def has_failed_for_good(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of a batch has failed, and would fail again."""
    return bool(entry.get("SenderFault")) and not _PASSING.search(str(entry.get("Code", "")))


class _Odd(Exception):
    """It isn't what SQS would answer."""


def _parts(decoder: Any, raw: bytes) -> dict[str, bytes]:
    """
    The members of an object, or the items of a list, as far as they are there.

    @raise _Odd: if it is anything else.
    """
    try:
        found = decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise _Odd from None
    parts = {field.encode_name: bytes(getattr(found, field.name)) for field in msgspec.structs.fields(found)}
    return {name: part for name, part in parts.items() if part}


def _members(decoder: Any, raw: bytes) -> dict[str, bytes]:
    """The members of an object that are there and not C{null}; likewise."""
    return {name: part for name, part in _parts(decoder, raw).items() if part != b"null"}


def _understood(body: bytes, known: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The lists in an answer, with what is used of their items."""
    try:
        answer = _members(_ANSWER, body)
    except _Odd:
        # msgspec accepts no half of a surrogate pair, not even in what it skips, and there are compatible
        # services that do.
        body = without_halves(body, _REPLACEMENT)
        answer = _members(_ANSWER, body)
    if answer.keys().isdisjoint({"ResponseMetadata", *known}) and not _EMPTY.fullmatch(body):
        raise _Odd
    return {
        name: [_item(name, item) for item in _parts(_LIST, answer[name]).values()]
        for name in _LISTS
        if name in answer
    }


def _item(name: str, raw: bytes) -> dict[str, Any]:
    """What is used of an item. Nothing is, if a text in it is anything else."""
    try:
        found = _members(_ITEMS[name], raw)
        return {member: _value(member, value) for member, value in found.items()}
    except _Odd:
        return {}


def _value(member: str, raw: bytes) -> Any:
    if member == "SenderFault":
        return raw == b"true"
    if member == "Attributes":
        return _attributes(raw)
    return _text(raw)


def _text(raw: bytes) -> str:
    if not raw.startswith(b'"'):
        raise _Odd
    try:
        # Of these, Python's own is the faster one if there are many escape sequences.
        return str(json.loads(raw))
    except ValueError:
        raise _Odd from None


def _attributes(raw: bytes) -> dict[str, str]:
    """Attributes of the wrong type are as good as none."""
    try:
        found = _members(_ATTRIBUTES, raw)
    except _Odd:
        return {}
    return {
        name: value.decode("ascii", "replace").strip('"')
        for name, value in found.items()
        if len(value) <= _MOST_ATTRIBUTE_BYTES
    }


def _error(body: bytes) -> Iterator[tuple[str, str]]:
    """The texts of an error. A body that isn't JSON is the message."""
    try:
        found = _members(_ERROR, body)
    except _Odd:
        if body and not body.lstrip().startswith((b"[", b"{", b'"')) and body.strip() != b"null":
            beginning = body[: _MOST_ERROR_CHARACTERS * _CHARACTER_BYTES].decode("utf-8", "replace")
            yield "message", beginning[:_MOST_ERROR_CHARACTERS]
        return
    for name, raw in found.items():
        try:
            yield name, _text(raw)[:_MOST_ERROR_CHARACTERS]
        except _Odd:
            pass
