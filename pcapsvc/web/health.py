"""C{/healthz} and C{/readyz}: whether the process answers, and whether it can do its work."""

# twisted.web has hardly any types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.interfaces import IReactorTime

from pcapsvc.core.role import Role
from pcapsvc.interfaces.capture import IHostInterfaces
from pcapsvc.interfaces.requests import IRequestSource
from pcapsvc.net.http_problems import NOT_READY
from pcapsvc.net.http_resource import Answer, HTTPProblem, Resource
from pcapsvc.net.shared import Shared

# How long the permission to capture is not looked at again: a process seldom loses or gains it.
_KEEP_SECONDS = 5.0


class Health(Resource):
    """C{/healthz}: the process answers."""

    allowedMethods = (b"GET", b"HEAD")
    is_public = True

    def render_GET(self, request: Any) -> Answer:
        """See L{Resource}."""
        return Answer.json({"status": "ok"})


class Readiness(Resource):
    """
    C{/readyz}: the node can capture, and requests can arrive. Only clients that may read are told why not.

    @param is_open: returns whether requests are admitted: they are not before the start and after the
        beginning of a stop.
    @param sources: the sources of requests, by name.
    """

    allowedMethods = (b"GET", b"HEAD")
    is_public = True

    def __init__(
        self,
        reactor: IReactorTime,
        host: IHostInterfaces,
        *,
        is_open: Callable[[], bool],
        sources: Mapping[str, IRequestSource],
    ) -> None:
        super().__init__()
        self._permission = Shared(reactor, host.check, keep_seconds=_KEEP_SECONDS)
        self._is_open = is_open
        self._sources = sources

    async def render_GET(self, request: Any) -> Answer:
        """See L{Resource}."""
        reasons = await self._reasons()
        if not reasons:
            return Answer.json({"status": "ok"})
        # They say something about the node, and about its brokers.
        shown: dict[str, Any] = {"reasons": reasons} if Role.READ in request.roles else {}
        raise HTTPProblem(503, "This node is not ready.", type=NOT_READY, title="Not ready", **shown)

    async def _reasons(self) -> list[str]:
        """Everything that is in the way."""
        reasons = []
        try:
            await self._permission.get()
        except PermissionError:
            reasons.append("no permission to capture: the daemon needs CAP_NET_RAW")
        except OSError as error:
            reasons.append(f"can't capture packets on this system: {error}")
        if not self._is_open():
            reasons.append("the daemon is starting or stopping")
        states = {name: source.state() for name, source in self._sources.items()}
        if not any(state.connected for state in states.values()):
            reasons += [
                f"{name} is not connected: {state.problem or 'no attempt has succeeded yet'}"
                for name, state in states.items()
            ]
        return reasons
