"""The tree of resources of the API."""

# twisted.web has hardly any types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from typing import Any

from twisted.application.service import MultiService
from twisted.web.resource import Resource as TwistedResource

from pcapsvc.net.http_resource import Answer, Resource


def mount(root: TwistedResource) -> MultiService:
    """
    Add the API to a tree.

    @param root: the resource at C{/}.

    @return: what has to run for it.
    """
    services = MultiService()
    root.putChild(b"healthz", Health())
    return services


class Health(Resource):
    """C{/healthz}: the process answers."""

    allowedMethods = (b"GET", b"HEAD")

    def render_GET(self, request: Any) -> Answer:
        """See L{Resource}."""
        return Answer.json({"status": "ok"})
