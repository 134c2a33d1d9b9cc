"""How the file of a capture may be compressed, and what a destination is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import msgspec

from pcapsvc.core.errors import Problem, shown
from pcapsvc.core.values import one_of

#: The word for a file that is not compressed.
UNCOMPRESSED = "none"


class Compression(msgspec.Struct, frozen=True, kw_only=True):
    """
    A way to compress a file.

    @ivar suffix: what the file's name gets at its end.
    @ivar media_type: of the compressed file, whatever is in it.
    """

    name: str
    suffix: str
    media_type: str


#: All of them, by name.
COMPRESSIONS: Mapping[str, Compression] = MappingProxyType(
    {
        each.name: each
        for each in (
            # RFC 6713 and RFC 8878, section 7.1.
            Compression(name="gzip", suffix=".gz", media_type="application/gzip"),
            Compression(name="zstd", suffix=".zst", media_type="application/zstd"),
        )
    }
)

#: What a request or a configuration may say.
CHOICES = (*COMPRESSIONS, UNCOMPRESSED)
#: The rule for it.
ONE_OF_CHOICES = one_of(*CHOICES)

# What a destination gets instead of what it can't read, the best first.
_INSTEAD = ("gzip", UNCOMPRESSED)


class CompressionChoice(msgspec.Struct, frozen=True, kw_only=True):
    """
    How a destination wants its files.

    @ivar usual: how they are compressed unless the request says otherwise: one of L{CHOICES}.
    @ivar readable: what the destination can read. L{UNCOMPRESSED} is always part of it.
    @ivar is_indifferent: whether it gets no file at all, so that none is compressed for it.
    """

    usual: str = UNCOMPRESSED
    readable: tuple[str, ...] = CHOICES
    is_indifferent: bool = False

    def of(self, asked: str | None) -> str:
        """
        How a file is compressed for this destination.

        @param asked: what the request says; L{None} if it says nothing.
        """
        if self.is_indifferent:
            return UNCOMPRESSED
        wanted = self.usual if asked is None else asked
        candidates = (wanted, *_INSTEAD)
        return next((each for each in candidates if each in self.readable), UNCOMPRESSED)


def compressions(asked: str | None, choices: Mapping[str, CompressionChoice]) -> dict[str, str]:
    """
    How a file is compressed for each destination, by its name.

    @param asked: what the request says; L{None} if it says nothing.
    """
    return {name: choice.of(asked) for name, choice in choices.items()}


def compression_warnings(asked: str | None, choices: Mapping[str, CompressionChoice]) -> Iterator[Problem]:
    """What a sender should know: which destinations can't read what the request asks for."""
    if asked is None:
        return
    for name, got in compressions(asked, choices).items():
        if got != asked and not choices[name].is_indifferent:
            instead = "an uncompressed file" if got == UNCOMPRESSED else got
            rule = f"can't be read by {name}, which gets {instead}"
            yield Problem(path="compress", value=shown(asked), rule=rule)
