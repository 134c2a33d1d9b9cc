"""The sections of all components, and what follows from them."""

from __future__ import annotations

import msgspec

from pcapsvc.settings.section import (
    DestinationSection,
    EncoderSection,
    Option,
    ReporterSection,
    Section,
    ServiceSection,
    SourceSection,
)


class Catalogue(msgspec.Struct, frozen=True, kw_only=True):
    """
    The sections of the configuration, from which its tables, keys and options follow.

    @ivar node: the sections that don't belong to a component.

    @raise ValueError: if two sections have a key or an option in common.
    """

    node: tuple[type[Section], ...]
    sources: tuple[type[SourceSection], ...]
    destinations: tuple[type[DestinationSection], ...]
    reporters: tuple[type[ReporterSection], ...] = ()
    encoders: tuple[type[EncoderSection], ...] = ()
    services: tuple[type[ServiceSection], ...] = ()

    def __post_init__(self) -> None:
        paths = [section.key_path(key) for section in self.sections for key in section.file_keys()]
        names = [option.name for section in self.sections for option in section.options]
        for known in (paths, names):
            twice = {each for each in known if known.count(each) > 1}
            if twice:
                raise ValueError(f"in more than one section: {', '.join(sorted(twice))}")

    @property
    def sections(self) -> tuple[type[Section], ...]:
        """All of them."""
        return (
            *self.node,
            *self.destinations,
            *self.sources,
            *self.reporters,
            *self.encoders,
            *self.services,
        )

    def tables(self) -> dict[str, tuple[str, ...]]:
        """The keys of each table of the file, except C{[[interface]]}."""
        tables: dict[str, tuple[str, ...]] = {}
        for section in self.sections:
            if section.table is not None:
                tables[section.table] = (*tables.get(section.table, ()), *section.file_keys())
        return tables

    def options(self) -> dict[str, tuple[Option, type[Section]]]:
        """The command line options by name, each with the section of its key."""
        return {option.name: (option, section) for section in self.sections for option in section.options}
