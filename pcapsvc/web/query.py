"""Parameters in the query of a URL."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pcapsvc.core.errors import Problem, shown
from pcapsvc.net.http_problems import bad_parameter

_MOST = 100


class Parameters:
    """
    The parameters of a request.

    @param request: a L{pcapsvc.net.http_request.Request}.
    @param known: the names that it may have. Each is given once, except for those in C{repeatable}.

    @raise HTTPProblem: if it has others, or one twice; or what is not UTF-8.
    """

    def __init__(self, request: Any, known: Collection[str], *, repeatable: Collection[str] = ()) -> None:
        self._given: dict[str, list[str]] = {}
        if request.query.count(b"&") >= _MOST:
            raise bad_parameter(Problem(path="query", rule=f"must have up to {_MOST} parameters"))
        for raw_name, raw_values in request.args.items():
            name = raw_name.decode("utf-8", "backslashreplace")
            if name not in known:
                rule = f"is not a known parameter; {_listed(known)}"
                raise bad_parameter(Problem(path=name[:80], rule=rule))
            try:
                values = [value.decode("utf-8") for value in raw_values]
            except UnicodeDecodeError:
                raise bad_parameter(Problem(path=name, rule="must be UTF-8")) from None
            if len(values) > 1 and name not in repeatable:
                raise bad_parameter(Problem(path=name, rule="must not be given twice"))
            self._given[name] = values

    def all(self, name: str) -> list[str]:
        """The values of a parameter that may be repeated."""
        return self._given.get(name, [])

    def text(self, name: str) -> str | None:
        """The value of a parameter; L{None} if it isn't given."""
        values = self._given.get(name)
        return None if values is None else values[0]

    def choice(self, name: str, choices: Collection[str]) -> str | None:
        """
        The value of a parameter; L{None} if it isn't given.

        @raise HTTPProblem: if it is not among C{choices}.
        """
        value = self.text(name)
        if value is not None and value not in choices:
            rule = f"must be one of {', '.join(choices)}"
            raise bad_parameter(Problem(path=name, value=shown(value), rule=rule))
        return value

    def number(self, name: str, least: int, most: int, default: int) -> int:
        """
        A whole number.

        @raise HTTPProblem: if it is not one, or outside of C{least} to C{most}.
        """
        value = self.text(name)
        if value is None:
            return default
        # Leading zeros and signs are for int(), not for a URL.
        if value.isascii() and value.isdecimal() and len(value) <= len(str(most)):
            number = int(value)
            if least <= number <= most:
                return number
        rule = f"must be a whole number from {least} to {most}"
        raise bad_parameter(Problem(path=name, value=shown(value), rule=rule))


def _listed(known: Collection[str]) -> str:
    return f"known are {', '.join(known)}" if known else "there are none"
