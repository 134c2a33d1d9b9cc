"""What a client of the API may do."""

from __future__ import annotations

from enum import Enum


class Role(Enum):
    """
    A role. One does not imply the other.

    @cvar READ: look at the node, its captures, their packets and its events.
    @cvar CAPTURE: start captures, and end them.
    """

    READ = "read"
    CAPTURE = "capture"


#: All roles.
ALL_ROLES = frozenset(Role)
