"""docs/events.md says of events what the schema says, with one valid example of each."""

from __future__ import annotations

import json
import re
from typing import Any

from twisted.trial import unittest

from tests.unit.documents import ROOT
from tests.unit.event_schema import problems, schema

DOCUMENT = ROOT / "docs" / "events.md"


def section(title: str) -> str:
    """The text below a title."""
    text = DOCUMENT.read_text("utf-8")
    [_, below] = re.split(rf"(?m)^##+ {re.escape(title)}\n", text)
    return re.split(r"(?m)^##", below)[0]


def rows(text: str) -> dict[str, str]:
    """The meaning of each field that has a row."""
    found = re.findall(r"(?m)^\| `([^`]+)` \|[^|]*\| (.+) \|$", text)
    return dict(found)


def resolved(part: dict[str, Any]) -> dict[str, Any]:
    """A part of the schema, with what it refers to."""
    if "$ref" in part:
        return {**schema()["$defs"][part["$ref"].removeprefix("#/$defs/")], **part}
    return part


def fields(part: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """The fields of an object, and of the objects in it, with their descriptions."""
    found: dict[str, str] = {}
    for name, raw in part.get("properties", {}).items():
        field = resolved(raw)
        found[prefix + name] = field["description"]
        found |= fields(field, f"{prefix}{name}.") if field.get("type") == "object" else {}
        if field.get("type") == "array":
            found |= fields(resolved(field["items"]), f"{prefix}{name}[].")
    return found


class EventDocumentTests(unittest.SynchronousTestCase):
    """What is documented is what there is."""

    def test_attributes(self) -> None:
        """Each attribute of an event has a row, and each label."""
        written = rows(section("Every event"))
        labels = schema()["$defs"]["labels"]["properties"]
        self.assertEqual([*written], [*schema()["properties"], *labels])
        for name, label in labels.items():
            self.assertEqual(written[name], label["description"], name)

    def test_fields(self) -> None:
        """Each type has a section, with the schema's description of it and of each field."""
        titles = re.findall(r"(?m)^### (pcapsvc\..*)$", DOCUMENT.read_text("utf-8"))
        self.assertEqual(titles, schema()["properties"]["type"]["enum"])
        for kind in titles:
            described = schema()["$defs"][kind]
            text = section(kind)
            self.assertIn(described["description"], text, kind)
            written, known = rows(text), fields(described["properties"]["data"])
            self.assertEqual([*written], [*known], kind)
            for name in known.keys() - {"captures[].id"}:
                self.assertEqual(written[name], known[name], f"{kind} {name}")

    def test_examples(self) -> None:
        """Each type has one example, which is valid."""
        for kind in schema()["properties"]["type"]["enum"]:
            example = "\n".join(re.findall(r"(?m)^    (.*)$", section(kind)))
            document = json.loads(example)
            self.assertEqual((document["type"], problems(document)), (kind, []))
