"""All settings of a node, as one immutable value."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from pcapsvc.settings.general import CaptureSettings, GeneralSettings
from pcapsvc.settings.interface import InterfaceSettings
from pcapsvc.settings.section import Section

S = TypeVar("S", bound=Section)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """
    The complete configuration. Its C{repr} doesn't show secrets.

    @ivar sections: one for each component, in the order of the list of components.
    @ivar interfaces: the interfaces that are configured.
    """

    sections: tuple[Section, ...]
    interfaces: tuple[InterfaceSettings, ...] = ()

    def find(self, kind: type[S]) -> S | None:
        """The section of a class; L{None} if there is none."""
        return next((section for section in self.sections if isinstance(section, kind)), None)

    def section(self, kind: type[S]) -> S:
        """
        The section of a class.

        @raise LookupError: if there is none.
        """
        found = self.find(kind)
        if found is None:
            raise LookupError(f"the settings have no {kind.__name__}")
        return found

    def named(self, name: str) -> Section:
        """
        A component's section by its name, for a person at a console: C{named("redis")}.

        @raise LookupError: if there is none.
        """
        for section in self.sections:
            if section.name == name:
                return section
        raise LookupError(f"no section {name!r}; there are {', '.join(each.name for each in self.sections)}")

    def enabled(self, kind: type[S]) -> tuple[S, ...]:
        """The enabled sections of a class and its subclasses: C{enabled(SourceSection)}."""
        return tuple(
            section for section in self.sections if isinstance(section, kind) and section.is_enabled()
        )

    @property
    def general(self) -> GeneralSettings:
        """C{[general]}."""
        return self.section(GeneralSettings)

    @property
    def capture(self) -> CaptureSettings:
        """C{[capture]}."""
        return self.section(CaptureSettings)
