"""
Placeholders in the folder that captures are stored in: C{pcaps/{node}/{date}}.

Whatever a placeholder stands for becomes a part of a path, or a piece of one. So values consist of letters,
digits and a few other characters, and neither add a part nor lead out of the folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from pcapsvc.core.artifact import Artifact
from pcapsvc.core.errors import shown_words

#: The names of all placeholders.
PLACEHOLDERS = (
    "node",
    "interface",
    "date",
    "year",
    "month",
    "day",
    "hour",
    "customer",
    "alertid",
    "id",
)

# A brace that is meant as such is doubled.
_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_LONGEST_VALUE = 100
#: What stands for something that isn't known.
UNKNOWN = "_"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The year 9999 ends then, in seconds since the Unix epoch.
_LATEST = 253_402_300_799.0
# As file_name() writes it: the interface, the time and the id.
_NAME = re.compile(r"(?P<node>.*)-(?P<interface>[^-]+)-(?P<seconds>[0-9]{1,12})-[A-Za-z0-9_]+\.[a-z0-9.]+")


def problem_with(folder: str) -> str | None:
    """What is wrong with the placeholders of a folder, as a rule that continues its path, or L{None}."""
    for piece in _PIECE.finditer(folder):
        if piece[0] in ("{{", "}}") or piece[1] in PLACEHOLDERS:
            continue
        known = f"the known ones are {', '.join(f'{{{name}}}' for name in PLACEHOLDERS)}"
        if piece[1] is None:
            return f"has a single {piece[0]!r}; a brace is written twice, and {known}"
        return f"has the unknown placeholder '{{{shown_words(piece[1])}}}'; {known}"
    return None


def checked_folder(folder: str) -> str:
    """
    The folder itself.

    @raise ValueError: if something is wrong with its placeholders; the message is a rule.
    """
    problem = problem_with(folder)
    if problem is not None:
        raise ValueError(problem)
    return folder


def folder_of(folder: str, artifact: Artifact) -> str:
    """
    A folder with what its placeholders stand for. What is no placeholder stays as it is.

    @param folder: a path without the parts '.' and '..'.
    """
    if "{" not in folder and "}" not in folder:
        return folder
    values = _values(artifact)

    def replaced(piece: re.Match[str]) -> str:
        if piece[0] in ("{{", "}}"):
            return piece[0][0]
        return values.get(piece[1] or "", piece[0])

    return _PIECE.sub(replaced, folder)


def _values(artifact: Artifact) -> Mapping[str, str]:
    """What each placeholder stands for."""
    # A capture that an earlier version has spooled has some of this in its name only.
    name = _NAME.fullmatch(artifact.name)
    started = artifact.started
    if started is None:
        started = float(name["seconds"]) if name is not None else 0.0
    began = _EPOCH + timedelta(seconds=min(max(started, 0.0), _LATEST))
    labels = artifact.labels
    return {
        "node": _clean(artifact.node or (name and name["node"])),
        "interface": _clean(labels.interface or (name and name["interface"])),
        "date": began.strftime("%Y-%m-%d"),
        "year": began.strftime("%Y"),
        "month": began.strftime("%m"),
        "day": began.strftime("%d"),
        "hour": began.strftime("%H"),
        "customer": _clean(labels.customer),
        "alertid": _clean(labels.alertid),
        "id": _clean(artifact.capture_id),
    }


def _clean(value: object) -> str:
    """A value that can be a part of a path: never empty, and without a dot at its beginning."""
    if value is None:
        return UNKNOWN
    return _UNSAFE.sub("_", str(value)[: 2 * _LONGEST_VALUE])[:_LONGEST_VALUE].lstrip(".") or UNKNOWN
