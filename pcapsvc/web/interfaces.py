"""C{/interfaces}: what can be captured on."""

# twisted.web has hardly any types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet.interfaces import IReactorTime

from pcapsvc.core.network_interface import NetworkInterface
from pcapsvc.interfaces.capture import IHistories, IHostInterfaces
from pcapsvc.net.http_resource import Answer, HTTPProblem, Resource
from pcapsvc.net.shared import Shared

# How long a list is good: no longer than anybody notices.
_KEEP_SECONDS = 1.0


class Interfaces(Resource):
    """
    The network interfaces of this host.

    @param aliases: of interfaces, by the name that the configuration calls them by.
    @param standby: the interfaces on which a handle waits for the next capture, likewise.
    @param histories: what is kept of the past of some, likewise.
    """

    allowedMethods = (b"GET", b"HEAD")

    def __init__(
        self,
        reactor: IReactorTime,
        host: IHostInterfaces,
        *,
        aliases: Mapping[str, Sequence[str]],
        standby: Sequence[str],
        histories: IHistories,
    ) -> None:
        super().__init__()
        self._found = Shared(reactor, host.list_interfaces, keep_seconds=_KEEP_SECONDS)
        self._aliases = aliases
        self._standby = frozenset(standby)
        self._histories = histories

    async def render_GET(self, request: Any) -> Answer:
        """See L{Resource}."""
        try:
            found = await self._found.get()
        except OSError as error:
            raise HTTPProblem(503, f"The interfaces can't be listed: {error}") from None
        histories = {state.interface: state.values() for state in self._histories.states()}
        names = {name for interface in found for name in (interface.name, *interface.altnames)}
        listed = [self._as_json(interface, histories) for interface in found]
        gone = [self._gone(name, history) for name, history in histories.items() if name not in names]
        return Answer.json({"interfaces": [*listed, *gone]})

    def _as_json(self, interface: NetworkInterface, histories: Mapping[str, Any]) -> dict[str, Any]:
        names = (interface.name, *interface.altnames)
        return {
            "name": interface.name,
            "altnames": interface.altnames,
            "aliases": [alias for name in names for alias in self._aliases.get(name, ())],
            "index": interface.index,
            "up": interface.is_up,
            "link_type": interface.link_type,
            "addresses": interface.addresses,
            "standby": not self._standby.isdisjoint(names),
            "history": next((histories[name] for name in names if name in histories), None),
        }

    def _gone(self, name: str, history: object) -> dict[str, Any]:
        """An interface that isn't there, and whose past can still be requested."""
        return {
            "name": name,
            "altnames": (),
            "aliases": self._aliases.get(name, ()),
            "index": None,
            "up": False,
            "link_type": None,
            "addresses": (),
            "standby": name in self._standby,
            "history": history,
        }
