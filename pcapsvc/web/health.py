"""C{/healthz}: whether the process answers."""

# twisted.web has hardly any types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from typing import Any

from pcapsvc.net.http_resource import Answer, Resource


class Health(Resource):
    """C{/healthz}: the process answers."""

    allowedMethods = (b"GET", b"HEAD")

    def render_GET(self, request: Any) -> Answer:
        """See L{Resource}."""
        return Answer.json({"status": "ok"})
