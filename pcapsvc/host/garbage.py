"""Keeps the garbage collector from stopping the process for long."""

from __future__ import annotations

import gc

from twisted.application.service import Service


class LongLivedObjects(Service):
    """
    Exempts everything that exists after the start from garbage collection (C{gc.freeze}).

    Modules and classes are most of all objects, and stay. To look at them again in each full collection would
    take 20 to 50 ms, in which no packet is read.
    """

    def startService(self) -> None:
        """Collect what is left over from the start, and exempt the rest."""
        super().startService()  # type: ignore[no-untyped-call]
        gc.collect()
        gc.freeze()
