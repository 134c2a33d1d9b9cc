"""What the sections about message brokers have in common, those of sources and those of event channels."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, ClassVar

from pcapsvc.core.errors import Problem, shown
from pcapsvc.settings.section import Conflict, ReporterSection, Section, SourceSection

if TYPE_CHECKING:
    from pcapsvc.settings.settings import Settings


class BrokerSection(Section, frozen=True, kw_only=True):
    """
    The keys of a connection to a broker. A subclass has those that say what it is for.

    @cvar target: the key that names what messages are read from, or published to.
    """

    target: ClassVar[str]

    @classmethod
    def file_keys(cls) -> tuple[str, ...]:
        """As in L{Section}, with the key first that enables the component."""
        return tuple(sorted(super().file_keys(), key=lambda key: key != cls.switch))

    def targets(self) -> Collection[object]:
        """What C{target} names, on each of the servers. Two sections with one in common share messages."""
        raise NotImplementedError


def events_among_requests(settings: Settings) -> Iterator[Problem]:
    """
    No event is published to where this node reads its requests. It would reject each of them, and each
    rejection is another event.
    """
    sources = [each for each in settings.enabled(SourceSection) if isinstance(each, BrokerSection)]
    for reports in settings.enabled(ReporterSection):
        if not isinstance(reports, BrokerSection):
            continue
        for source in sources:
            if set(reports.targets()) & set(source.targets()):
                path = source.key_path(source.target)
                yield Conflict(
                    path=reports.key_path(reports.target),
                    others=(path,),
                    value=shown(getattr(reports, reports.target)),
                    rule=f"must differ from {path}: otherwise this node would read its events as requests",
                )
