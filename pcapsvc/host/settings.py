"""The settings of this host's services: C{[syslog]}."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pcapsvc.settings.kinds import Line, whole_number
from pcapsvc.settings.section import BuildContext, ServiceSection

if TYPE_CHECKING:
    from twisted.application.service import IService


class SyslogSettings(ServiceSection, frozen=True, kw_only=True):
    """
    The log, sent to the local syslog too. The table enables it, even if it is empty.

    @ivar priority: facility × 8 + severity (RFC 5424, section 6.2.1).
    """

    name: ClassVar[str] = "syslog"
    table: ClassVar[str | None] = "syslog"
    only_if_given: ClassVar[bool] = True

    priority: Annotated[int, whole_number(0, 191)] = 85
    tag: Line = "pcapsvc"

    def build(self, context: BuildContext, node: Any) -> IService:
        """The service."""
        from pcapsvc.host.syslog import SyslogService

        return SyslogService(self.priority, self.tag)
