"""Checks events against the schema that is shipped."""

from __future__ import annotations

import importlib.resources
import json
import re
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any
from unittest import TestCase

from pcapsvc.core.event import Event, EventFactory, Payload, as_json
from pcapsvc.core.labels import Labels

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator

    from pcapsvc.testing import MemoryReporter


@cache
def schema() -> dict[str, Any]:
    """The schema, as it is shipped."""
    file = importlib.resources.files("pcapsvc.core").joinpath("event.schema.json")
    return json.loads(file.read_text("utf-8"))  # type: ignore[no-any-return]


@cache
def _validator(kind: str | None = None) -> Draft202012Validator:
    """
    The schema, without the room that it leaves for fields of later versions.

    @param kind: for this type alone, which is ten times faster; L{None} is for all.
    """
    # Imported here, because this module is imported in every process of the tests, and few make events.
    from jsonschema import Draft202012Validator

    strict = json.loads(json.dumps(schema()))
    is_whole = kind is None
    if not is_whole:
        strict["oneOf"] = [one for one in strict["oneOf"] if one["$ref"] == f"#/$defs/{kind}"]
    strict["unevaluatedProperties"] = False
    for name, kind in strict["$defs"].items():
        if name.startswith("pcapsvc."):
            _close(kind["properties"]["data"])
        elif kind["type"] == "object" and name != "labels":
            # What every event repeats is only a part of its data.
            _close(kind)
    if is_whole:
        Draft202012Validator.check_schema(strict)
    return Draft202012Validator(strict)


def _close(part: dict[str, Any]) -> None:
    part["unevaluatedProperties"] = False
    for inner in [*part.get("properties", {}).values(), *(one.get("items", {}) for one in _arrays(part))]:
        if inner.get("type") == "object":
            _close(inner)


def _arrays(part: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in part.get("properties", {}).values() if one.get("type") == "array"]


# Documents that were valid, as the schema sees them: by the kind that they were compared with, and _kind().
_valid: set[Any] = set()


def problems(document: Any, kind: str | None = None) -> list[str]:
    """
    What is wrong with the JSON of an event: nothing if the schema can't tell it from another one that was
    valid. Some tests ask about hundreds of events, and to validate one takes milliseconds.

    @param kind: compare it with the events of this type only, which takes less time.
    """
    alike = kind, _kind(document)
    if alike in _valid:
        return []
    found = [f"{error.json_path}: {error.message}" for error in _validator(kind).iter_errors(document)]
    if not found:
        _valid.add(alike)
    return found


def check_every_event() -> None:
    """
    From now on, check every event that is made in this process. If one isn't valid, L{AssertionError} is
    raised where it is made, which fails the test, if only because it is logged.
    """
    make = EventFactory.event

    def checked(
        factory: EventFactory, data: Payload, labels: Labels, subject: str | None = None, **more: Any
    ) -> Event:
        event = make(factory, data, labels, subject, **more)
        _check_document(as_json(event), data.type)
        return event

    EventFactory.event = checked  # type: ignore[method-assign]


def _check_document(document: dict[str, Any], kind: str) -> None:
    """Check the JSON of an event of a kind."""
    found = problems(document, kind)
    assert not found, f"{document}: {found}"


#: The members of an event whose very value the schema knows.
_KNOWN_VALUES = frozenset({"specversion", "source", "type", "datacontenttype", "reason"})
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{6}Z")
_LONGEST_ID = 128


def _kind(value: Any, name: str = "") -> Any:
    """
    What the schema can tell of a part of an event. To validate one takes milliseconds, so it is done once for
    all that have this in common.
    """
    match value:
        case dict():
            return tuple(sorted((key, _kind(item, key)) for key, item in value.items()))
        case list():
            return ("list", *sorted({_kind(item) for item in value}, key=repr))
        case str() if name in _KNOWN_VALUES:
            return value
        case str():
            is_id = value.isascii() and value.isalnum()
            return (bool(value), len(value) > _LONGEST_ID, is_id, bool(_TIME.fullmatch(value)))
        case bool() | None:
            return type(value).__name__
        case _ if value != value or value in (float("inf"), float("-inf")):
            raise AssertionError(f"{name} = {value} is no JSON")
    return (type(value).__name__, value > 0, value == 0)


def check(events: Iterable[Event]) -> None:
    """
    Check events: each is valid by the schema, survives JSON in UTF-8, and has an id of its own.

    @raise AssertionError: if one does not.
    """
    ids = set()
    for event in events:
        document = as_json(event)
        assert json.loads(json.dumps(document, ensure_ascii=False).encode()) == document, document
        _check_document(document, event.type)
        assert event.id not in ids, event
        ids.add(event.id)


def checked_reporter(case: TestCase) -> MemoryReporter:
    """A reporter whose events are checked when a test is over."""
    from pcapsvc.testing import MemoryReporter

    reporter = MemoryReporter()
    case.addCleanup(lambda: check(reporter.events))
    return reporter
