"""What a stop needs of the parts that it stops."""

from __future__ import annotations

from zope.interface import Interface


class IHurriable(Interface):
    """A part that can be told, while the service stops, that time is getting short."""

    def hurry() -> None:
        """Cut short what can be done later, and keep it."""
