"""Checks events against the schema that is shipped."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Iterable
from functools import cache
from typing import Any
from unittest import TestCase

from jsonschema import Draft202012Validator

from pcapsvc.core.event import Event, as_json
from pcapsvc.testing import MemoryReporter


@cache
def schema() -> dict[str, Any]:
    """The schema, as it is shipped."""
    file = importlib.resources.files("pcapsvc.core").joinpath("event.schema.json")
    return json.loads(file.read_text("utf-8"))  # type: ignore[no-any-return]


@cache
def _validator() -> Draft202012Validator:
    """The schema, without the room that it leaves for fields of later versions."""
    strict = json.loads(json.dumps(schema()))
    strict["unevaluatedProperties"] = False
    for name, kind in strict["$defs"].items():
        if name.startswith("pcapsvc."):
            _close(kind["properties"]["data"])
    Draft202012Validator.check_schema(strict)
    return Draft202012Validator(strict)


def _close(part: dict[str, Any]) -> None:
    part["unevaluatedProperties"] = False
    for inner in [*part.get("properties", {}).values(), *(one.get("items", {}) for one in _arrays(part))]:
        if inner.get("type") == "object":
            _close(inner)


def _arrays(part: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in part.get("properties", {}).values() if one.get("type") == "array"]


def problems(document: Any) -> list[str]:
    """What is wrong with the JSON of an event."""
    return [f"{error.json_path}: {error.message}" for error in _validator().iter_errors(document)]


def check(events: Iterable[Event]) -> None:
    """
    Check events: each is valid by the schema, survives JSON in UTF-8, and has an id of its own.

    @raise AssertionError: if one does not.
    """
    ids = set()
    for event in events:
        document = as_json(event)
        assert json.loads(json.dumps(document, ensure_ascii=False).encode()) == document, document
        found = problems(document)
        assert not found, f"{document}: {found}"
        assert event.id not in ids, event
        ids.add(event.id)


def checked_reporter(case: TestCase) -> MemoryReporter:
    """A reporter whose events are checked when a test is over."""
    reporter = MemoryReporter()
    case.addCleanup(lambda: check(reporter.events))
    return reporter
