"""The token in a file, for authentication by OAUTHBEARER."""

from __future__ import annotations

from kafka.net.sasl.oauth import AbstractTokenProvider

from pcapsvc.regular_file import read_regular_file

_MOST_BYTES = 1024 * 1024


class UnusableToken(Exception):
    """There is no token to authenticate with. The message says why, without the token."""


class TokenFile(AbstractTokenProvider):  # type: ignore[misc] # kafka-python has no types
    """
    Provides the current token in a file.

    @raise UnusableToken: if there is none.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.token()

    def token(self) -> str:
        """
        The token.

        @raise UnusableToken: if the file can't be read, or is not text.
        """
        try:
            content = read_regular_file(self._path, _MOST_BYTES + 1)
            if len(content) <= _MOST_BYTES:
                return content.decode("utf-8-sig").strip()
            reason = f"it is longer than {_MOST_BYTES} bytes"
        except OSError as problem:
            reason = problem.strerror or type(problem).__name__
        except UnicodeError:
            # Its message contains what could not be decoded: the token.
            reason = "it is not UTF-8"
        raise UnusableToken(f"no token to authenticate with: {reason} ({self._path})")
