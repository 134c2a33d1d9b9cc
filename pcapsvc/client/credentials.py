"""Secrets, and which hosts they are for."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field  # noqa: TID251 - secrets are left out of its repr

from pcapsvc.client.address import HttpAddress
from pcapsvc.client.status import UsageProblem


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """
    @ivar token: for the API of nodes; L{None} if they need none.
    @ivar password: for a broker whose URL has a user name, or none at all, but no password.
    @ivar ca_file: the certificates that are trusted; L{None} for the system's.
    @ivar trusted: the patterns of API addresses that may be sent the token. An event says where the API of
        its node is, and whoever can publish events must not be able to collect tokens.
    """

    token: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    trusted: tuple[str, ...] = ()

    def token_for(self, address: HttpAddress) -> str | None:
        """The token, if an address may have it."""
        return self.token if is_trusted(address, self.trusted) else None

    @property
    def ca_path(self) -> str | None:
        """The path of the file of certificates; L{None} if there is none."""
        return None if self.ca_file is None else os.path.expanduser(self.ca_file)

    def trust(self) -> ssl.SSLContext:
        """
        What servers are verified with.

        @raise UsageProblem: if the file of certificates can't be used.
        """
        try:
            return ssl.create_default_context(cafile=self.ca_path)
        except ssl.SSLError:
            raise UsageProblem(f"{self.ca_file}: has no certificates (PEM)") from None
        except (OSError, ValueError) as problem:
            raise UsageProblem(f"{self.ca_file}: {getattr(problem, 'strerror', 'not a path')}") from None


def is_trusted(address: HttpAddress, patterns: Iterable[str]) -> bool:
    """Whether an address is one of these. In a pattern, C{*} stands for a label, or a part of one."""
    own = str(address).lower()
    return any(
        re.fullmatch("[^./:@]*".join(map(re.escape, pattern.lower().split("*"))), own) for pattern in patterns
    )
