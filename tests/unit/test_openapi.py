"""The OpenAPI document: it describes what there is, and all of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from types import SimpleNamespace
from typing import Any

import msgspec
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from twisted.web.resource import Resource as TwistedResource
from twisted.web.resource import getChildForRequest

import pcapsvc
from pcapsvc.core.event import Payload
from pcapsvc.core.put_url import PutUrlOptions
from pcapsvc.core.request import RequestFields, StopRequest
from pcapsvc.core.session import StopReason
from pcapsvc.destinations.s3.options import CANNED_ACLS, S3_FIELDS, STORAGE_CLASSES
from pcapsvc.interfaces.captures import CAPTURE_STATES
from pcapsvc.net.http_resource import HTTPProblem
from pcapsvc.web.description import Description
from tests.unit.http_case import HTTPTestCase
from tests.unit.settings_case import SettingsTestCase
from tests.unit.test_web_node import build

DOCUMENT: dict[str, Any] = json.loads(files("pcapsvc.web").joinpath("openapi.json").read_text())
_METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}


def schema(name: str) -> dict[str, Any]:
    """One of the document's schemas."""
    found: dict[str, Any] = DOCUMENT["components"]["schemas"][name]
    return found


def parts(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every object in the document."""
    if isinstance(value, dict):
        yield value
        for each in value.values():
            yield from parts(each)
    elif isinstance(value, list):
        for each in value:
            yield from parts(each)


def resource_at(root: TwistedResource, path: str) -> Any:
    """The resource of a documented path."""
    segments = path.removeprefix("/").replace("{id}", "abc1").encode().split(b"/")
    request: Any = SimpleNamespace(prepath=[], postpath=segments)
    return getChildForRequest(root, request)


class DocumentTests(HTTPTestCase, SettingsTestCase):
    """C{/openapi.json}."""

    def test_served(self) -> None:
        """It is served as it is in the package, with this version."""
        self.source.root.putChild(b"openapi.json", Description())
        response = self.ask("GET", "/openapi.json")
        self.assertEqual((response.code, response.content), (200, DOCUMENT))
        self.assertEqual(DOCUMENT["info"]["version"], pcapsvc.__version__)
        self.assertTrue(DOCUMENT["openapi"].startswith("3.1."))

    def test_references(self) -> None:
        """Every reference leads somewhere, and nothing is defined that isn't used."""
        used = set()
        for part in parts(DOCUMENT):
            if isinstance(reference := part.get("$ref"), str):
                found: Any = DOCUMENT
                for step in reference.removeprefix("#/").split("/"):
                    found = found[step]
                used.add(reference)
        for kind in ("schemas", "responses"):
            for name in DOCUMENT["components"][kind]:
                self.assertIn(f"#/components/{kind}/{name}", used)

    def test_schemas(self) -> None:
        """The document is one of OpenAPI, every schema is one, and every example is valid."""
        validate(DOCUMENT)
        for name in DOCUMENT["components"]["schemas"]:
            Draft202012Validator.check_schema(schema(name))
        for part in parts(DOCUMENT["paths"]):
            if "schema" in part and isinstance(part["schema"], dict):
                Draft202012Validator.check_schema(part["schema"])
                validator = Draft202012Validator({**part["schema"], "components": DOCUMENT["components"]})
                examples = [each["value"] for each in part.get("examples", {}).values()]
                for example in examples + [part[key] for key in ("example",) if key in part]:
                    validator.validate(example)

    def test_names(self) -> None:
        """
        No object within a schema has the name of another schema: generators of clients call the C{request} of
        C{Capture} C{CaptureRequest}.
        """
        names = DOCUMENT["components"]["schemas"].keys()
        for name in names:
            for key, value in schema(name).get("properties", {}).items():
                if "properties" in value or "properties" in value.get("items", {}):
                    self.assertNotIn(name + key.title().replace("_", ""), names)

    def routes(self, root: TwistedResource) -> dict[str, set[str]]:
        """The documented paths that there are, and their methods."""
        found = {}
        for path in DOCUMENT["paths"]:
            request: Any = SimpleNamespace(
                prepath=[], postpath=path.replace("{id}", "abc1").encode()[1:].split(b"/")
            )
            try:
                resource = getChildForRequest(root, request)
            except HTTPProblem:
                continue
            found[path] = {each.decode().lower() for each in resource.allowedMethods}
        return found

    def test_routes(self) -> None:
        """Its paths and methods are those that a node has. HEAD goes without saying."""
        root = build(self).sources["http"].root
        documented = {path: set(item) & _METHODS for path, item in DOCUMENT["paths"].items()}
        there_are = self.routes(root)
        for methods in there_are.values():
            self.assertEqual("head" in methods, "get" in methods)
            methods.discard("head")
        self.assertEqual(documented, there_are)
        served = {f"/{name.decode()}" for name in root.children}
        self.assertEqual(served, {"/" + path.split("/")[1] for path in documented})

    def test_public(self) -> None:
        """What needs no token is that which is public."""
        root = build(self).sources["http"].root
        for path, item in DOCUMENT["paths"].items():
            request: Any = SimpleNamespace(
                prepath=[], postpath=path.replace("{id}", "abc1").encode()[1:].split(b"/")
            )
            resource = getChildForRequest(root, request)
            for method in set(item) & _METHODS:
                self.assertEqual(item[method].get("security") == [], resource.is_public, path)
                self.assertNotEqual("401" in item[method]["responses"], resource.is_public, path)

    def test_requests(self) -> None:
        """It has every field of a request, and every value that a field may have."""
        fields = schema("CaptureRequest")["properties"]
        self.assertEqual(
            set(fields), {*RequestFields.__struct_fields__, *S3_FIELDS, *PutUrlOptions.__struct_fields__}
        )
        self.assertEqual(set(fields["acl"]["enum"]), {*CANNED_ACLS, "", None})
        self.assertEqual(set(fields["storageclass"]["enum"]), {*STORAGE_CLASSES, "", None})
        self.assertEqual(set(schema("StopRequest")["properties"]), set(StopRequest.__struct_fields__))
        self.assertEqual(len(msgspec.structs.fields(StopRequest)), 3)

    def test_types_of_events(self) -> None:
        """It has every type of events, and what types begin with."""
        [choices] = [
            each["schema"]["items"]["enum"]
            for each in DOCUMENT["paths"]["/events"]["get"]["parameters"]
            if each["name"] == "type"
        ]
        expected = set()
        for payload in Payload.__subclasses__():
            words = payload.type.split(".")
            expected |= {".".join(words[: number + 1]) for number in range(len(words))}
        self.assertEqual(set(choices), expected)

    def test_states(self) -> None:
        """It has every state of a capture, and every reason of its end."""
        capture = schema("Capture")["properties"]
        self.assertEqual(set(capture["state"]["enum"]), set(CAPTURE_STATES))
        self.assertEqual(set(capture["reason"]["enum"]), {reason.value for reason in StopReason})
        [states] = [
            each["schema"]["enum"]
            for each in DOCUMENT["paths"]["/captures"]["get"]["parameters"]
            if each["name"] == "state"
        ]
        self.assertEqual(set(states), set(CAPTURE_STATES))
