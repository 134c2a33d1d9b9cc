"""The token in a file, for authentication by OAUTHBEARER."""

from __future__ import annotations

from pathlib import Path

from kafka.net.sasl.oauth import AbstractTokenProvider


class UnusableToken(Exception):
    """There is no token to authenticate with. The message says why, without the token."""


class TokenFile(AbstractTokenProvider):  # type: ignore[misc] # kafka-python has no types
    """
    Provides the current token in a file.

    @raise UnusableToken: if there is none.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self.token()

    def token(self) -> str:
        """
        The token.

        @raise UnusableToken: if the file can't be read, or is not text.
        """
        try:
            return self._path.read_text(encoding="utf-8-sig").strip()
        except OSError as problem:
            reason = problem.strerror or type(problem).__name__
        except UnicodeError:
            # Its message contains what could not be decoded: the token.
            reason = "it is not UTF-8"
        raise UnusableToken(f"no token to authenticate with: {reason} ({self._path})")
