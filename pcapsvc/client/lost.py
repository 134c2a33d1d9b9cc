"""Why a connection was lost, in words."""

from __future__ import annotations

import ssl

from pcapsvc.core.text import one_line


def words_of(problem: Exception) -> str:
    """What the system says on one line, or the library; of TLS, what is wrong with it."""
    if (tls := tls_words(problem)) is not None:
        return tls
    if isinstance(problem, TimeoutError) and not problem.strerror:
        # TLS says in which operation.
        return "timed out"
    return one_line(getattr(problem, "strerror", None) or str(problem) or type(problem).__name__)


def tls_words(problem: BaseException) -> str | None:
    """What is wrong with TLS, if that is behind an exception of a library; else L{None}."""
    seen: set[int] = set()
    behind: BaseException | None = problem
    while behind is not None and id(behind) not in seen:
        if isinstance(behind, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return "TLS failed: the connection was cut"
        if isinstance(behind, ssl.SSLError):
            # The whole text has the line of OpenSSL's source.
            reason = (behind.reason or "the connection was cut").replace("_", " ").lower()
            return one_line(f"TLS failed: {getattr(behind, 'verify_message', None) or reason}")
        seen.add(id(behind))
        behind = behind.__cause__ or (None if behind.__suppress_context__ else behind.__context__)
    return None
