"""Types of values in requests and in the configuration: each has its bounds, and its rule in words."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from pcapsvc.core.text import UNSAFE

# The same, without the white space that a filter may have. One class of characters: alternatives would take
# Python milliseconds for a long text.
_UNSAFE_IN_FILTERS = UNSAFE.replace(r"\x00-\x1f", r"\x00-\x08\x0b\x0c\x0e-\x1f")
_ONE_LINE = rf"\A[^{UNSAFE}]*\Z"


def one_of(*choices: str) -> Meta:
    """One of several words."""
    return Meta(pattern=rf"\A(?:{'|'.join(choices)})\Z", description=f"one of {', '.join(choices)}")


def one_line(most: int, what: str = "one line of text", least: int = 0) -> Meta:
    """Text on one line, of up to C{most} characters."""
    return Meta(
        min_length=least, max_length=most, pattern=_ONE_LINE, description=f"{what} of up to {most} characters"
    )


Flag = Annotated[bool, Meta(description="true or false")]
Positive = Annotated[int, Meta(ge=1, description="a whole number, 1 or more")]
Name = Annotated[str, one_line(255)]
Label = Annotated[str, one_line(1024)]
RequestId = Annotated[str, one_line(128)]
#: What a request to stop names: the L{RequestId} of another one.
StoppedId = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=128,
        pattern=_ONE_LINE,
        description="the requestid of a request: one line of text of 1 to 128 characters",
    ),
]
Pattern = Annotated[str, one_line(1024, "a regular expression on one line")]
Filter = Annotated[
    str,
    Meta(pattern=rf"\A[^{_UNSAFE_IN_FILTERS}]*\Z", description="a filter without control characters"),
]
AlertId = Annotated[
    Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | Name,
    Meta(description="a whole number of 64 bits, or one line of text of up to 255 characters"),
]
# What the kernel accepts as a device's name (dev_valid_name() in net/core/dev.c), as long as an alternative
# name may be (ALTIFNAMSIZ in linux/if.h).
InterfaceName = Annotated[
    str,
    Meta(
        pattern=r"\A(?!\.{1,2}\Z)[^\s/:\x00-\x1f\x7f]{1,127}\Z",
        description="an interface name of 1 to 127 characters, without spaces, slashes or colons",
    ),
]
InterfaceNames = Annotated[
    tuple[InterfaceName, ...],
    Meta(
        max_length=256,
        description="a list of up to 256 interface names, each of 1 to 127 characters,"
        " without spaces, slashes or colons",
    ),
]
Aliases = Annotated[
    tuple[Annotated[str, one_line(255, least=1)], ...],
    Meta(
        max_length=256,
        description="a list of up to 256 interface aliases, each one line of text of 1 to 255 characters",
    ),
]
# The names of encoders are words.
Format = Annotated[
    str, Meta(pattern=r"\A[A-Za-z0-9_-]{1,32}\Z", description="the name of a file format, such as pcap")
]
Region = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9-]{1,64}\Z", description="the name of a region")]
Folder = Annotated[
    str,
    Meta(
        max_length=512,
        pattern=r"\A(?!.*(?:\A|/)\.{1,2}(?:/|\Z))[^" + UNSAFE + r"\\]*\Z",
        description="a path of up to 512 characters, without a control character, a backslash"
        " or a part that is '.' or '..'",
    ),
]
