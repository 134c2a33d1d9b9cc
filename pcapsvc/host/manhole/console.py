"""
A Python console: takes source, runs it, and writes what it prints.

It knows nothing of SSH or of terminals. What it writes is free of secrets and of control
characters, and bounded.
"""

from __future__ import annotations

import ast
import builtins
import codeop
import contextlib
import io
import itertools
import re
import sys
import traceback
from collections.abc import Callable
from types import CodeType
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from pcapsvc.core.mask import Mask
from pcapsvc.core.text import SURROGATES, UNSAFE
from pcapsvc.host.manhole import time_limit
from pcapsvc.host.manhole.time_limit import TimeLimit

#: How much one line may print; the rest is cut off.
MAX_OUTPUT_CHARACTERS = 64 * 1024

#: The longest piece of source that is run.
MAX_SOURCE_CHARACTERS = 64 * 1024

_FILE_NAME = "<manhole>"
_UNSAFE = re.compile(rf"(?![\n\t])[{UNSAFE}{SURROGATES}]")


class Exit(Exception):
    """
    The line asked to close the session.

    @ivar status: the exit status that it asked for, from 0 to 255.
    @ivar reason: in words, unless the status is 0.
    """

    def __init__(self, asked: SystemExit) -> None:
        super().__init__()
        code = asked.code
        # Python takes None for success, and whatever is not a number for a failure.
        if code is None:
            self.status = 0
        else:
            self.status = int(code) if isinstance(code, int) and 0 <= code <= 255 else 1
        self.reason = "".join(traceback.format_exception_only(asked)) if self.status else ""


class _Output(io.TextIOBase):
    """Holds what a line prints, as far as it is bounded."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._parts: list[str] = []
        self._size = 0
        self._left_out = 0

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"must be str, not {type(text).__name__}")
        taken = text[: self._most - self._size]
        self._size += len(taken)
        self._left_out += len(text) - len(taken)
        if taken:
            self._parts.append(taken)
        return len(text)

    def take(self) -> tuple[str, int]:
        """What was written, and how many characters more were."""
        return "".join(self._parts), self._left_out


class Console:
    """
    One console, with a namespace of its own.

    @param namespace: the names that its source sees at first.
    @param write: is called with what a line printed.
    @param write_later: is called with what a Deferred fired with, if that is after the line
        that showed it; L{None} is C{write}.
    @param mask: takes secrets out of a text.
    @param limit: of the time that a line may take.
    """

    def __init__(
        self,
        namespace: dict[str, Any],
        write: Callable[[str], None],
        *,
        mask: Mask,
        limit: TimeLimit,
        write_later: Callable[[str], None] | None = None,
    ) -> None:
        self._namespace = {"__name__": "__manhole__", "__builtins__": builtins, **namespace}
        self._write = write
        self._write_later = write_later or write
        self._mask = mask
        self._limit = limit
        self._compile = codeop.CommandCompiler()
        self._lines: list[str] = []
        self._output: _Output | None = None
        self._numbers = itertools.count()
        self._awaited: dict[int, tuple[int, Deferred[Any]]] = {}
        self._idle: Deferred[None] | None = None
        self._is_closed = False

    def push(self, line: str) -> bool:
        """
        Take one line.

        @return: whether more lines are needed, before it is run.

        @raise Exit: if it asked for that.
        """
        self._lines.append(line)
        source = "\n".join(self._lines)
        try:
            if len(source) > MAX_SOURCE_CHARACTERS:
                raise SyntaxError(f"longer than {MAX_SOURCE_CHARACTERS} characters")
            code = self._compile(source, _FILE_NAME, "single")
        except (SyntaxError, ValueError, OverflowError, MemoryError, RecursionError) as error:
            self._lines.clear()
            self._write(self._clean("".join(traceback.format_exception_only(error))))
            return False
        if code is None:
            return True
        self._lines.clear()
        self._run(code)
        return False

    def forget_lines(self) -> None:
        """Forget the lines that wait for more."""
        self._lines.clear()

    def run(self, source: str) -> int:
        """
        Run a whole piece of source, and show the value of each expression in it.

        @return: the exit status: 0 if it ran to its end, or what it asked for, or 1 if it failed.
        """
        try:
            if len(source) > MAX_SOURCE_CHARACTERS:
                raise SyntaxError(f"longer than {MAX_SOURCE_CHARACTERS} characters")
            statements = ast.parse(source, _FILE_NAME).body
            code = compile(ast.Interactive(statements), _FILE_NAME, "single", dont_inherit=True)
        except (SyntaxError, ValueError, OverflowError, MemoryError, RecursionError) as error:
            self._write(self._clean("".join(traceback.format_exception_only(error))))
            return 1
        try:
            return 0 if self._run(code) else 1
        except Exit as exit:
            problem = self._new_output()
            problem.write(exit.reason)
            self._write_out(problem, self._write)
            return exit.status

    def when_idle(self) -> Deferred[None]:
        """Fires with L{None} when every Deferred that was shown has fired; never fails."""
        if self._idle is None:
            self._idle = Deferred()
        idle = self._idle
        self._check_idle()
        return idle

    def close(self) -> None:
        """Write nothing more, and drop the references to all objects."""
        self._is_closed = True
        self._namespace.clear()
        self._awaited.clear()
        self._lines.clear()

    def _run(self, code: CodeType) -> bool:
        """Whether it ran to its end."""
        output = self._output = self._new_output()
        before = sys.displayhook, sys.stdin
        # Nobody can answer: whoever asks gets the end of the file.
        sys.displayhook, sys.stdin = self._show, io.StringIO()
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                return self._execute(code, output)
        finally:
            sys.displayhook, sys.stdin = before
            self._output = None

    def _execute(self, code: CodeType, output: _Output) -> bool:
        # Apart from the output, whose bound it may have reached.
        problem = self._new_output()
        try:
            self._limit.run(exec, code, self._namespace)
        except SystemExit as error:
            raise Exit(error) from None
        except BaseException as error:  # noqa: BLE001 - whatever a line raises is shown, and goes no further
            problem.write(_traceback(error))
            return False
        finally:
            self._write_out(output, self._write)
            self._write_out(problem, self._write)
        return True

    def _new_output(self) -> _Output:
        # As much more as it takes to recognize a secret that is cut.
        return _Output(MAX_OUTPUT_CHARACTERS + self._mask.longest)

    def _write_out(self, output: _Output, write: Callable[[str], None]) -> None:
        text, left_out = output.take()
        text = self._clean(text)
        if len(text) > MAX_OUTPUT_CHARACTERS:
            left_out += len(text) - MAX_OUTPUT_CHARACTERS
            text = text[:MAX_OUTPUT_CHARACTERS]
        if left_out:
            text += f"\n[{left_out} more characters were cut off]\n"
        if text and not self._is_closed:
            write(text)

    def _clean(self, text: str) -> str:
        return _UNSAFE.sub(_escaped, self._mask(text))

    def _show(self, value: Any) -> None:
        """Print the value of an expression, as C{sys.displayhook} does; a Deferred's when it fires."""
        if value is None:
            return
        self._namespace["_"] = value
        if isinstance(value, Deferred):
            self._show_deferred(value)
        else:
            print(repr(value))  # noqa: T201 - to the session, which is where stdout leads here

    def _show_deferred(self, deferred: Deferred[Any]) -> None:
        known = self._awaited.get(id(deferred))
        number = known[0] if known else next(self._numbers)
        if not deferred.called:
            print(f"<Deferred #{number}, which has not fired>")  # noqa: T201 - as above
        if known:
            return
        self._awaited[id(deferred)] = number, deferred

        def fired(result: Any) -> Any:
            if self._awaited.pop(id(deferred), None) is not None:
                self._show_result(number, result)
                self._check_idle()
            return result

        deferred.addBoth(fired)

    def _show_result(self, number: int, result: Any) -> None:
        try:
            if isinstance(result, Failure):
                text = f"failed with {type(result.value).__name__}: {result.getErrorMessage()}"
            else:
                self._namespace["_"] = result
                text = self._limit.run(repr, result)
        except BaseException as error:  # noqa: BLE001 - whatever a repr raises is shown, and goes no further
            text = f"fired with a {type(result).__name__} that can't be shown: {type(error).__name__}"
        output = self._output or self._new_output()
        output.write(f"Deferred #{number}: {text}\n")
        if output is not self._output:
            self._write_out(output, self._write_later)

    def _check_idle(self) -> None:
        if not self._awaited and self._idle is not None:
            idle, self._idle = self._idle, None
            idle.callback(None)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def _traceback(error: BaseException) -> str:
    """A traceback that begins with the line, and ends where it was interrupted."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename != _FILE_NAME:
        frames = frames.tb_next
    shown = traceback.TracebackException(type(error), error, frames)
    shown.stack = traceback.StackSummary.from_list(
        [frame for frame in shown.stack if frame.filename != time_limit.__file__]
    )
    return "".join(shown.format())
