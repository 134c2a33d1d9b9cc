"""C{/openapi.json}: the API, described for machines."""

# twisted.web has hardly any types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from pathlib import Path
from typing import Any

from pcapsvc.net.http_resource import Answer, Resource

# As most tools expect it; its own media type, application/openapi+json, was never registered.
_MEDIA_TYPE = "application/json"


class Description(Resource):
    """The OpenAPI document, which is in C{openapi.json} next to this file. It is read now, and kept."""

    allowedMethods = (b"GET", b"HEAD")

    def __init__(self) -> None:
        super().__init__()
        self._document = Path(__file__).with_name("openapi.json").read_bytes()

    def render_GET(self, request: Any) -> Answer:
        """See L{Resource}."""
        return Answer(media_type=_MEDIA_TYPE, body=self._document)
