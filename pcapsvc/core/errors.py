"""What can go wrong, split by whose fault it is."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from itertools import repeat

import msgspec

from pcapsvc.core.mask import of_process, without_queries

_LONGEST_SHOWN_VALUE = 80
# Python converts up to 4,300 digits to decimal; hexadecimal numbers in TOML may have more.
_MOST_DECIMAL_BITS = 14_000
# Those of RFC 8259, section 7, that are needed without quotes, too.
_ESCAPE_SEQUENCES = {"\\": r"\\", "\n": r"\n", "\r": r"\r", "\t": r"\t"}

#: The reason that is given for an unexpected exception. The log has its traceback.
FAULT = "internal error; see the daemon's log"
#: The reason that is given for work that a stop has cut off.
STOPPED = "the daemon stopped"

#: The errors of the operating system that mean that there is no room, for now: see L{NodeBusy}.
NO_ROOM = frozenset({errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.EAGAIN})


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """
    One thing that is wrong with a configuration or a request.

    @ivar path: where it is: a TOML path (C{general.maxpackets}), an option
        (C{--maxpackets}), or a field of a request (C{packets}).
    @ivar rule: the rule that it breaks, as a phrase that continues from the path:
        C{must be a whole number, 1 or more}.
    @ivar value: the value that was given, shortened; L{None} if there is none, or if it may
        be a secret.
    """

    path: str
    rule: str
    value: str | None = None

    def __str__(self) -> str:
        given = "" if self.value is None else f" = {self.value}"
        return f"{self.path}{given}: {self.rule}"

    def as_mapping(self) -> dict[str, str | None]:
        """The problem in values that JSON has."""
        return {"path": self.path, "value": self.value, "rule": self.rule}


def shown(value: object) -> str:
    """
    A value as an error message shows it: in JSON, or TOML's same notation, on one line, shortened.
    """
    return _shortened(_notation(value, repeat(None, _LONGEST_SHOWN_VALUE)))


def shown_words(text: str, most: int = _LONGEST_SHOWN_VALUE) -> str:
    """A text from outside as a message shows it: escaped, on one line, shortened, without quotes."""
    # Before it is cut, as half of a secret would not be recognized later.
    text = of_process(text[: most + of_process.longest + 1])
    return _shortened("".join(map(_escaped, text[: most + 1])), most)


def _notation(value: object, room: Iterator[None]) -> str:
    """
    A value in JSON (RFC 8259), as far as it is shown: the rest would take time in proportion to its size,
    which a sender chooses. What only TOML has, is in TOML's notation.

    @param room: one for each item that is still shown.
    """
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            text = without_queries(value[: _LONGEST_SHOWN_VALUE + 1])
            return '"' + "".join('\\"' if each == '"' else _escaped(each) for each in text) + '"'
        case bytes():
            return str(value[: _LONGEST_SHOWN_VALUE + 1])
        case int() if value.bit_length() > _MOST_DECIMAL_BITS:
            return hex(value)
        case list() | tuple():
            items = [_notation(item, room) for item, _ in zip(value, room, strict=False)]
            return f"[{', '.join(items)}]"
        case dict():
            members = [
                f"{_notation(key, room)}: {_notation(item, room)}"
                for (key, item), _ in zip(value.items(), room, strict=False)
            ]
            return f"{{{', '.join(members)}}}"
    return str(value)


def _escaped(character: str) -> str:
    """A character of a text in JSON; one that can't be printed, in an escape sequence."""
    if character in _ESCAPE_SEQUENCES:
        return _ESCAPE_SEQUENCES[character]
    if character.isprintable():
        return character
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def _shortened(text: str, most: int = _LONGEST_SHOWN_VALUE) -> str:
    return text if len(text) <= most else text[:most] + "…"


class PcapsvcError(Exception):
    """The base class of all errors that pcapsvc raises on purpose. It is not raised itself."""


class _Problems(PcapsvcError):
    """An error with every problem that was found, not only the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class SettingsError(_Problems):
    """The operator's fault: the configuration or the options are wrong."""


class RequestRejected(_Problems):
    """The sender's fault: the request is wrong, and sending it again will not help."""


#: Why an interface can't be captured on that doesn't exist.
NO_SUCH_INTERFACE = "no such interface"


class CaptureUnavailable(PcapsvcError):
    """
    The node's fault: it is not possible to capture on this interface now.

    @ivar interface: the interface's name.
    """

    def __init__(self, interface: str, reason: str) -> None:
        super().__init__(f"{interface}: {reason}")
        self.interface = interface
        self.reason = reason


class CaptureForbidden(CaptureUnavailable):
    """The operator's fault: this process may not capture on any interface."""


class NodeBusy(PcapsvcError):
    """The node's fault, for now: there is not enough memory, or no descriptor, for another capture."""


class EncoderError(PcapsvcError):
    """The node's fault: a recording could not be encoded."""


class DestinationError(PcapsvcError):
    """
    The remote's fault: a destination did not accept a capture.

    @ivar retryable: whether the same attempt may succeed later without any change.
    @ivar retry_after_seconds: how long the destination asks to wait; L{None} if it doesn't say.
    """

    def __init__(self, message: str, *, retryable: bool, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.retry_after_seconds = retry_after_seconds

    def at(self, place: str) -> DestinationError:
        """The same error, of which this says where."""
        return DestinationError(
            f"{place}: {self}", retryable=self.retryable, retry_after_seconds=self.retry_after_seconds
        )


class SpoolError(PcapsvcError):
    """The node's fault: the spool can't store a capture, or has lost part of it."""
