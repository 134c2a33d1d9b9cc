"""The tokens of clients, and the file that lists them."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from pcapsvc.core.role import ALL_ROLES, Role
from pcapsvc.settings.files import BadLines, is_one_line, read_text
from pcapsvc.settings.secret import Secret

# A shorter one could be guessed, and can't be kept out of the log.
_LEAST_CHARACTERS = 8
# Each request without a valid token is compared with all of them.
_MOST_TOKENS = 100

_ROLES = {role.value: frozenset({role}) for role in Role}


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """
    A token.

    @ivar roles: what a client that presents it may do.
    """

    secret: Secret
    roles: frozenset[Role] = ALL_ROLES


def read_tokens(path: str) -> tuple[Token, ...]:
    """
    The tokens in a file: one in each line, perhaps with a role after it. Empty lines and those that begin
    with C{#} are left out.

    @raise ValueError: as L{pcapsvc.settings.files.read_text}, and L{BadLines} with every line that is wrong.
    """
    lines = [(number, line.strip()) for number, line in enumerate(read_text(path).split("\n"), 1)]
    given = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not given:
        raise ValueError("must be a file with a token in each line, but there is none")
    if len(given) > _MOST_TOKENS:
        raise ValueError(f"must be a file with up to {_MOST_TOKENS} tokens")
    tokens: list[Token] = []
    problems = [f"line {number} {rule}" for number, line in given for rule in _read_line(line, tokens)]
    if problems:
        raise BadLines(problems)
    return tuple(tokens)


def _read_line(line: str, tokens: list[Token]) -> Iterator[str]:
    """
    Append the token of a line.

    @return: what is wrong with it. This shows nothing of the line, as any part of it may be a secret.
    """
    text, *words = line.split()
    if not all(map(is_one_line, (text, *words))) or len(words) > 1 or (words and words[0] not in _ROLES):
        yield f"must be a token, or a token and a role: {' or '.join(_ROLES)}"
    elif len(text) < _LEAST_CHARACTERS:
        yield f"must have a token of at least {_LEAST_CHARACTERS} characters"
    elif any(token.secret == Secret(text) for token in tokens):
        yield "has a token that was given before; without a role, a token has both"
    else:
        tokens.append(Token(secret=Secret(text), roles=_ROLES[words[0]] if words else ALL_ROLES))
