"""The tree of resources of the API."""

# twisted.web has hardly any types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from typing import Any

from twisted.application.service import MultiService
from twisted.web.resource import Resource as TwistedResource

from pcapsvc.settings.section import BuildContext
from pcapsvc.web.captures import CaptureList
from pcapsvc.web.health import Health


def mount(root: TwistedResource, context: BuildContext, node: Any) -> MultiService:
    """
    Add the API to a tree.

    @param root: the resource at C{/}. What it has at C{captures} receives requests.
    @param node: the L{pcapsvc.app.Node} whose API it is.

    @return: what has to run for it.
    """
    services = MultiService()
    posts = root.getStaticEntity(b"captures")
    root.putChild(b"captures", CaptureList(context.reactor, posts, node.captures))
    root.putChild(b"healthz", Health())
    return services
