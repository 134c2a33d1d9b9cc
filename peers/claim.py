"""Numbers that only one process on this machine uses at a time: of ports, of networks."""

from __future__ import annotations

import random
import socket

# Each holds a claim until this process ends.
_claims: list[socket.socket] = []


def claim(kind: str, count: int) -> int:
    """
    Claim a number for this process, until it ends.

    Tests run in several processes. A claim is the name of an abstract socket (unix(7)), which only one socket
    can have: so the kernel releases it however the process ends.

    @param kind: what is numbered; only processes that name the same kind exclude each other.
    @param count: how many numbers there are.
    @return: one from 0 to C{count - 1}.
    @raise RuntimeError: all are in use.
    """
    first = random.SystemRandom().randrange(count)
    for number in (*range(first, count), *range(first)):
        holder = socket.socket(socket.AF_UNIX)
        try:
            holder.bind(f"\0pcapsvc-{kind}-{number}")
        except OSError:
            holder.close()
            continue
        _claims.append(holder)
        return number
    raise RuntimeError(f"all {count} of {kind} are in use")
