"""Why connections are lost."""

from __future__ import annotations

from typing import TypeVar

from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST

_Error = TypeVar("_Error", bound=BaseException)


def unshared(error: _Error) -> _Error:
    """
    An error that may be raised. Twisted has one exception for all connections that are lost, and another for
    all that are closed: each time one of them is raised, its traceback keeps the frames that it passes
    through, with all that they hold. In place of such a one, this is a new exception.
    """
    if error is CONNECTION_LOST or error is CONNECTION_DONE:
        error.__traceback__ = None
        return type(error)(*error.args)
    return error
