"""C{[[interface]]}: the aliases of an interface, and how much of its past is kept."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta, field

from pcapsvc.core.errors import Problem, shown
from pcapsvc.core.history import LONGEST_SECONDS, HistoryBounds
from pcapsvc.core.request import filter_problems
from pcapsvc.host.memory import ProcessMemory
from pcapsvc.settings.kinds import MIB, MOST, Filter, InterfaceName, Line, SnapLength, whole_number
from pcapsvc.settings.section import Conflict

if TYPE_CHECKING:
    from pcapsvc.settings.settings import Settings

#: The name of the only array of tables: C{[[interface]]}.
INTERFACE = "interface"

_WITHOUT_HISTORY = ("historysize", "historysnap", "historyfilter")


class InterfaceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """
    One C{[[interface]]}.

    @ivar history_seconds: how much of its past is kept; L{None} is nothing.
    @ivar history_bytes: the memory for it.
    @ivar history_snap_length: how much of each packet is kept, in bytes; L{None} is as much as captures have
        by default.
    @ivar history_bpf: a filter of pcap-filter(7) for what is kept; empty for every packet.
    """

    name: InterfaceName
    alias: Annotated[
        tuple[Line, ...], Meta(description="a list of aliases, each one line of text, not empty")
    ] = ()
    history_seconds: Annotated[int, whole_number(1, LONGEST_SECONDS, "a whole number of seconds,")] | None = (
        field(name="history", default=None)
    )
    history_bytes: Annotated[int, whole_number(4 * MIB, MOST, "a whole number of bytes,")] = field(
        name="historysize", default=64 * MIB
    )
    history_snap_length: SnapLength | None = field(name="historysnap", default=None)
    history_bpf: Filter = field(name="historyfilter", default="")


def interface_keys() -> tuple[str, ...]:
    """The keys of an C{[[interface]]}."""
    return InterfaceSettings.__struct_encode_fields__


def may_be_empty(key: str) -> bool:
    """Whether an empty text for a key of an C{[[interface]]} is the same as leaving the key out."""
    fields = {each.encode_name: each.default for each in msgspec.structs.fields(InterfaceSettings)}
    return key in fields and fields[key] in (None, "")


def interfaces_by_alias(interfaces: Iterable[InterfaceSettings]) -> dict[str, tuple[str, ...]]:
    """The names of the interfaces that carry an alias, in their order, by the alias."""
    found: dict[str, tuple[str, ...]] = {}
    for interface in interfaces:
        for alias in interface.alias:
            found[alias] = (*found.get(alias, ()), interface.name)
    return found


def histories(settings: Settings) -> dict[str, HistoryBounds]:
    """The bounds of each history that is configured, by the name of its interface, in their order."""
    return {
        interface.name: HistoryBounds(
            seconds=interface.history_seconds,
            size_bytes=interface.history_bytes,
            snap_length=interface.history_snap_length or settings.general.snap_length,
            # As for a request: for libpcap's scanner, these are all white space.
            bpf=interface.history_bpf.replace("\r", " "),
        )
        for interface in settings.interfaces
        if interface.history_seconds is not None
    }


def history_bytes(settings: Settings) -> int:
    """The memory for all histories."""
    return sum(bounds.size_bytes for bounds in histories(settings).values())


def capture_bytes(settings: Settings, memory: ProcessMemory) -> int:
    """
    The memory for captures: what is left by the histories, which hold theirs all the time.

    @param memory: what this process may use.
    """
    return max(0, memory.at_most(settings.general.max_memory_bytes) - history_bytes(settings))


def history_without_effect(given: Collection[str], prefix: str) -> Iterator[Problem]:
    """
    The problems with keys that need C{history}.

    @param given: the keys that an C{[[interface]]} has.
    @param prefix: its path, with a dot.
    """
    if "history" not in given:
        for key in _WITHOUT_HISTORY:
            if key in given:
                yield Problem(path=prefix + key, rule=f"has no effect without {prefix}history")


def history_problems(settings: Settings, paths: Mapping[str, str]) -> Iterator[Problem]:
    """
    The rules between the histories, and between them and C{[general]}, that are broken.

    @param paths: the path of each C{[[interface]]}, with a dot, by its name.
    """
    general = settings.general
    for name, bounds in histories(settings).items():
        if bounds.snap_length > general.max_snap_length:
            yield Conflict(
                path=f"{paths[name]}historysnap",
                others=("general.maxsnaplength", "general.snaplength"),
                value=shown(bounds.snap_length),
                rule=f"must be at most general.maxsnaplength, which is {general.max_snap_length}",
            )
        for problem in filter_problems(bounds.bpf, general.max_filter_characters):
            yield msgspec.structs.replace(problem, path=f"{paths[name]}historyfilter")
    total = history_bytes(settings)
    if total and total + general.max_bytes > general.max_memory_bytes:
        yield Conflict(
            path="general.maxmemory",
            others=("general.maxbytes", *(f"{path}historysize" for path in paths.values())),
            value=shown(general.max_memory_bytes),
            rule=f"must be at least {total + general.max_bytes}: {total} for histories ([[interface]]"
            f" historysize), and {general.max_bytes} for a capture (general.maxbytes)",
        )
