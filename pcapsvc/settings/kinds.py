"""
The kinds of values in the configuration.

A kind is a type with its bounds and, as its description, the rule that a problem shows:
C{must be a whole number from 1 to 65535}. It may also have a conversion, which is applied to
values within the bounds.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, get_args

from msgspec import Meta

from pcapsvc.core.compression import ONE_OF_CHOICES
from pcapsvc.core.endpoint import endpoint_url
from pcapsvc.core.folder import checked_folder
from pcapsvc.core.text import SURROGATES
from pcapsvc.core.values import Filter, Flag, Folder, InterfaceName, InterfaceNames, Region, one_of
from pcapsvc.settings.files import absolute_path, certificates_file, key_file, secret_file

__all__ = [
    "MAX_SNAP_LENGTH",
    "MIB",
    "MOST",
    "AbsolutePath",
    "CertificatesFile",
    "Compress",
    "Count",
    "Endpoint",
    "Filter",
    "Flag",
    "FolderTemplate",
    "Host",
    "InterfaceName",
    "InterfaceNames",
    "KeyFile",
    "Line",
    "Path",
    "Port",
    "Region",
    "Seconds",
    "SecondsOrNone",
    "SecretFile",
    "ServerHost",
    "Size",
    "SnapLength",
    "Verify",
    "conversion_of",
    "converted",
    "none_if_zero",
    "one_of",
    "whole_number",
]

MIB = 1024 * 1024
#: The largest number that TOML has.
MOST = 2**63 - 1

#: The longest snap length that libpcap accepts (MAXIMUM_SNAPLEN in pcap-int.h).
MAX_SNAP_LENGTH = 262144

#: How the files of a destination are compressed.
Compress = Annotated[str, ONE_OF_CHOICES]

_CONVERSION = "conversion"


def whole_number(low: int, high: int, what: str = "a whole number") -> Meta:
    """A whole number within bounds, both included."""
    return Meta(ge=low, le=high, description=f"{what} from {low} to {high}")


def converted(conversion: Callable[[Any], Any]) -> Meta:
    """
    A conversion, for a kind: C{Annotated[Line, converted(endpoint_url)]}.

    @param conversion: is called with a value within the bounds, and returns the value of the
        field. It raises L{ValueError} with a rule that continues from the path, if the value is
        not acceptable.
    """
    return Meta(extra={_CONVERSION: conversion})


def conversion_of(kind: Any) -> Callable[[Any], Any] | None:
    """The conversion of a kind, or of a kind that may be L{None}, if it has one."""
    for part in (kind, *get_args(kind)):
        for meta in getattr(part, "__metadata__", ()):
            if isinstance(meta, Meta) and meta.extra and _CONVERSION in meta.extra:
                conversion: Callable[[Any], Any] = meta.extra[_CONVERSION]
                return conversion
    return None


def none_if_zero(number: int) -> int | None:
    """In the file, 0 means "no limit"; everywhere else, that is L{None}."""
    return number or None


def without_brackets(host: str) -> str:
    """An IPv6 address without the brackets that it has in URLs."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def is_host(text: str) -> bool:
    """Whether a text that isn't from the file can be a L{Host}."""
    return re.search(_HOST, text) is not None


def _verification(given: str | bool) -> str | bool:
    return certificates_file(given) if isinstance(given, str) else given


_ONE_LINE = rf"[^\x00-\x1f\x7f-\x9f\u2028\u2029{SURROGATES}]"

Count = Annotated[int, whole_number(1, MOST)]
Size = Annotated[int, whole_number(1, MOST, "a whole number of bytes,")]
SnapLength = Annotated[int, whole_number(1, MAX_SNAP_LENGTH, "a whole number of bytes,")]
# 10**9 seconds are 31 years: long enough, and still a time that clocks can represent.
Seconds = Annotated[int, whole_number(1, 10**9, "a whole number of seconds,")]
#: A time limit; 0 means that there is none.
SecondsOrNone = Annotated[int, whole_number(0, 10**9, "a whole number of seconds,"), converted(none_if_zero)]
Port = Annotated[int, whole_number(1, 65535)]
Line = Annotated[str, Meta(pattern=rf"\A{_ONE_LINE}+\Z", description="one line of text, not empty")]
_HOST = rf"\A(?!.*[\s/])[^\x00-\x20\x7f-\x9f{SURROGATES}]{{1,255}}\Z"
Host = Annotated[
    str,
    Meta(
        pattern=_HOST,
        description="a host name or address, without spaces or slashes",
    ),
]
#: The host of a server. An IPv6 address may be in brackets, as in URLs.
ServerHost = Annotated[Host, converted(without_brackets)]
Path = Annotated[str, Meta(pattern=r"\A[^\x00]+\Z", description="a path, not empty")]
AbsolutePath = Annotated[Path, converted(absolute_path)]
CertificatesFile = Annotated[Path, converted(certificates_file)]
#: Whether a server's certificate is verified, or the path of those to verify it with.
Verify = Annotated[
    bool | str, Meta(description="true, false, or a path of certificates"), converted(_verification)
]
KeyFile = Annotated[Path, converted(key_file)]
#: A file with a secret that is read when it is needed, not only at the start.
SecretFile = Annotated[Path, converted(secret_file)]
#: A folder that may have placeholders.
FolderTemplate = Annotated[Folder, converted(checked_folder)]
#: The URL of an S3 or SQS service.
Endpoint = Annotated[Line, converted(endpoint_url)]
