"""C{[manhole]}."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from msgspec import field

from pcapsvc.core.errors import Problem, shown
from pcapsvc.settings.kinds import AbsolutePath, Line, converted
from pcapsvc.settings.listen import checked_listener, read_listener
from pcapsvc.settings.section import BuildContext, Conflict, ServiceSection

if TYPE_CHECKING:
    from twisted.application.service import IService

# More than one, so that a login doesn't wait for another whose disk hangs.
_THREADS = 2


def _local_listener(text: str) -> str:
    listener = read_listener(text)
    if not listener.local or listener.kind == "ssl":
        raise ValueError(
            "must be an endpoint on a loopback address (tcp:2222:interface=127.0.0.1) or a unix socket"
            " (unix:/run/pcapsvc/manhole.sock): whoever reaches the console controls the daemon"
        )
    return checked_listener(text)


class ManholeSettings(ServiceSection, frozen=True, kw_only=True):
    """
    The manhole: a Python console inside the daemon, by SSH.

    @ivar listen: a server endpoint string of Twisted; L{None} is no manhole.
    @ivar authorized_keys: the keys that may log in, in a file as OpenSSH's authorized_keys.
    @ivar host_key: the file of the host's own key. It is created if it is missing.
    """

    name: ClassVar[str] = "manhole"
    table: ClassVar[str | None] = "manhole"

    listen: Annotated[Line, converted(_local_listener)] | None = None
    authorized_keys: AbsolutePath | None = field(name="authorizedkeys", default=None)
    host_key: AbsolutePath | None = field(name="hostkey", default=None)

    def is_enabled(self) -> bool:
        """Whether there is somewhere to listen."""
        return self.listen is not None

    def problems(self, settings: Any) -> Iterator[Problem]:
        """To listen it needs both files, in order. Conch is imported only then."""
        if self.listen is None:
            return
        for key, path in (("authorizedkeys", self.authorized_keys), ("hostkey", self.host_key)):
            if path is None:
                yield Conflict(
                    path="manhole.listen",
                    others=(f"manhole.{key}",),
                    value=shown(self.listen),
                    rule=f"needs manhole.{key}",
                )
        from pcapsvc.host.manhole.keys import authorized_keys_problems, host_key_problems

        if self.authorized_keys is not None:
            for rule in authorized_keys_problems(self.authorized_keys):
                yield Problem(path="manhole.authorizedkeys", value=shown(self.authorized_keys), rule=rule)
        if self.host_key is not None:
            for rule in host_key_problems(self.host_key):
                yield Problem(path="manhole.hostkey", value=shown(self.host_key), rule=rule)

    def build(self, context: BuildContext, node: Any) -> IService:
        """The manhole of a L{pcapsvc.app.Node}."""
        from pcapsvc.core.mask import Mask
        from pcapsvc.host.manhole.service import ManholeService
        from pcapsvc.host.manhole.tools import namespace
        from pcapsvc.settings.secret import secrets_in

        assert self.listen is not None
        assert self.authorized_keys is not None
        assert self.host_key is not None
        return ManholeService(
            context.reactor,
            listen=self.listen,
            authorized_keys=self.authorized_keys,
            host_key=self.host_key,
            namespace=lambda: namespace(node, context.reactor),
            mask=Mask(secrets_in(context.settings)),
            run_in_thread=context.threads(_THREADS),
        )
