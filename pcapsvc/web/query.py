"""Parameters in the query of a URL."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Self

from pcapsvc.core.errors import Problem, shown
from pcapsvc.net.http_problems import bad_parameters

_MOST = 100
# Up to this many problems are reported one by one.
_MOST_REPORTED = 20


class Parameters:
    """
    The parameters of a request. They are read in a context, and every problem with them is raised at its end:

        with Parameters(request, ("limit",)) as given:
            limit = given.number("limit", 1, 9, 5)

    @param request: a L{pcapsvc.net.http_request.Request}.
    @param known: the names that it may have. Each is given once, except for those in C{repeatable}.

    @raise HTTPProblem: when it ends, if there are others, or one twice; or what is not UTF-8, or not a value
        of its parameter. At once, if there are too many.
    """

    def __init__(self, request: Any, known: Collection[str], *, repeatable: Collection[str] = ()) -> None:
        self._given: dict[str, list[str]] = {}
        self._problems: list[Problem] = []
        if request.query.count(b"&") >= _MOST:
            raise bad_parameters([Problem(path="query", rule=f"must have up to {_MOST} parameters")])
        for raw_name, raw_values in request.args.items():
            name = raw_name.decode("utf-8", "backslashreplace")
            if name not in known:
                self.reject(name[:80], f"is not a known parameter; {_listed(known)}")
                continue
            try:
                values = [value.decode("utf-8") for value in raw_values]
            except UnicodeDecodeError:
                self.reject(name, "must be UTF-8")
                continue
            if len(values) > 1 and name not in repeatable:
                self.reject(name, "must not be given twice")
                continue
            self._given[name] = values

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if error is None and (problems := self._problems):
            if (more := len(problems) - _MOST_REPORTED) > 0:
                rule = f"has {more} more problems"
                problems = [*problems[:_MOST_REPORTED], Problem(path="query", rule=rule)]
            raise bad_parameters(problems)

    def reject(self, name: str, rule: str, value: str | None = None) -> None:
        """
        A parameter can't be used.

        @param value: what it is, if that is to be shown.
        """
        self._problems.append(Problem(path=name, value=None if value is None else shown(value), rule=rule))

    def all(self, name: str) -> list[str]:
        """The values of a parameter that may be repeated."""
        return self._given.get(name, [])

    def text(self, name: str) -> str | None:
        """The value of a parameter; L{None} if it isn't given."""
        values = self._given.get(name)
        return None if values is None else values[0]

    def choice(self, name: str, choices: Collection[str]) -> str | None:
        """
        The value of a parameter; L{None} if it isn't given, or not among C{choices}.
        """
        value = self.text(name)
        if value is not None and value not in choices:
            self.reject(name, f"must be one of {', '.join(choices)}", value)
            return None
        return value

    def number(self, name: str, least: int, most: int, default: int) -> int:
        """
        A whole number from C{least} to C{most}; C{default} if it isn't given, or is not one.
        """
        value = self.text(name)
        if value is None:
            return default
        # Leading zeros and signs are for int(), not for a URL.
        if value.isascii() and value.isdecimal() and len(value) <= len(str(most)):
            number = int(value)
            if least <= number <= most:
                return number
        self.reject(name, f"must be a whole number from {least} to {most}", value)
        return default


def _listed(known: Collection[str]) -> str:
    return f"known are {', '.join(known)}" if known else "there are none"
