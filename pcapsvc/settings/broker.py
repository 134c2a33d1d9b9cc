"""What the sections about message brokers have in common, those of sources and those of event channels."""

from __future__ import annotations

from pcapsvc.settings.section import Section


class BrokerSection(Section, frozen=True, kw_only=True):
    """The keys of a connection to a broker. A subclass has those that say what it is for."""

    @classmethod
    def file_keys(cls) -> tuple[str, ...]:
        """As in L{Section}, with the key first that enables the component."""
        return tuple(sorted(super().file_keys(), key=lambda key: key != cls.switch))
