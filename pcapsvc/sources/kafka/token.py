"""The token in a file, that a login by OAUTHBEARER takes."""

from __future__ import annotations

from pathlib import Path

from kafka.net.sasl.oauth import AbstractTokenProvider


class UnusableToken(Exception):
    """There is no token to log in with; its words say why, and don't show it."""


class TokenFile(AbstractTokenProvider):  # type: ignore[misc] # kafka-python has no types
    """
    Gives the token in a file, as it is now.

    @raise UnusableToken: where there is none.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self.token()

    def token(self) -> str:
        """
        The token.

        @raise UnusableToken: where the file can't be read, or is no text.
        """
        try:
            return self._path.read_text(encoding="utf-8").strip()
        except OSError as problem:
            reason = problem.strerror or type(problem).__name__
        except UnicodeError:
            # It holds what it could not decode: the token.
            reason = "it is not UTF-8"
        raise UnusableToken(f"there is no token to log in with: {reason} ({self._path})")
