"""What the shutdown asks of the services that it stops."""

from __future__ import annotations

from zope.interface import Interface


class IHurriable(Interface):
    """A service whose stop can be hurried when time runs short."""

    def hurry() -> None:
        """Abandon work that can be completed after a restart, and keep it for then."""
