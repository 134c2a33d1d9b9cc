"""What docs/configuration.md and examples/pcapsvc.toml must say about each component."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from pcapsvc.settings import Catalogue, InterfaceSettings
from pcapsvc.settings.interface import INTERFACE, interface_keys

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTATION = ROOT / "docs" / "configuration.md"
EXAMPLE = ROOT / "examples" / "pcapsvc.toml"

# What is written instead of a default.
_SPECIAL_DEFAULTS = {
    "general.nodename": "the host name",
    "cloudshark.timeout": "`0`",
    "interface.name": "required",
    "interface.historysnap": "`general.snaplength`",
}


def rows(text: str) -> dict[str, dict[str, list[str]]]:
    """The cells of each row of the tables of the documentation, by section and first cell."""
    found: dict[str, dict[str, list[str]]] = {}
    section = ""
    for line in text.splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ").strip("[]").lower()
        elif line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            found.setdefault(section, {})[cells[0].strip("`")] = cells
    return found


def undocumented(components: Catalogue, text: str) -> Iterator[str]:
    """What the documentation lacks, or says wrongly, about keys, defaults and options."""
    documented = rows(text)
    tables = {**components.tables(), INTERFACE: interface_keys()}
    for table, keys in tables.items():
        written = documented.get(table, {})
        yield from (f"{table}.{key}: no row" for key in keys if key not in written)
        yield from (f"{table}.{key}: a row without a key" for key in written if key not in keys)
    for structure in (*components.sections, InterfaceSettings):
        table = INTERFACE if structure is InterfaceSettings else str(structure.table)
        written = documented.get(table, {})
        keys = interface_keys() if structure is InterfaceSettings else structure.file_keys()
        if [key for key in written if key in keys] != [key for key in keys if key in written]:
            yield f"{table}: the rows are not in the order of the keys: {', '.join(keys)}"
        fields = {each.encode_name: each for each in msgspec.structs.fields(structure)}
        for key in keys:
            if key in written and not _has_default(f"{table}.{key}", fields.get(key), written[key][3]):
                yield f"{table}.{key}: another default"
    options = documented.get("options", {})
    for name, (option, section) in components.options().items():
        if f"--{name}" not in options:
            yield f"--{name}: no row"
        elif not option.only and options[f"--{name}"][1] != f"`{section.key_path(option.key)}`":
            yield f"--{name}: another key"
    known = {"--config", *(f"--{name}" for name in components.options())}
    yield from (f"{name}: a row without an option" for name in options if name not in known)
    yield from _unnamed_switches(components, text)


def missing_from_example(components: Catalogue, text: str) -> Iterator[str]:
    """The keys that the full example lacks, be it behind a hash sign, and those that it should not have."""
    for table, keys in {**components.tables(), INTERFACE: interface_keys()}.items():
        header = f"[[{INTERFACE}]]" if table == INTERFACE else f"[{table}]"
        found: list[str] = []
        if section := re.search(rf"(?m)^#?{re.escape(header)}\n", text):
            lines = re.split(r"(?m)^#?\[", text[section.end() :])[0]
            found = re.findall(r"(?m)^#?([a-z_]+)[ ]*= ", lines)
        yield from (f"{table}.{key}: no line" for key in keys if key not in found)
        yield from (f"{table}.{key}: a line without a key" for key in found if key not in keys)


def _has_default(path: str, field: Any, cell: str) -> bool:
    if path in _SPECIAL_DEFAULTS:
        return cell == _SPECIAL_DEFAULTS[path]
    if field is None or field.default is None:
        return cell == "none"
    written = tomllib.loads(f"value = {cell.strip('`')}")["value"]
    if isinstance(written, list):
        written = type(field.default)(written)
    return (written, type(written)) == (field.default, type(field.default))


def _unnamed_switches(components: Catalogue, text: str) -> Iterator[str]:
    """The documentation names all that can be enabled where it says that something must be."""
    for what, kinds in (("source", components.sources), ("destination", components.destinations)):
        [words] = re.findall(rf"(?m)^- At least one {what}: (.*)$", text)
        named = set(re.findall(r"[a-z0-9.]+\.[a-z]+", words))
        if named != {kind.key_path(kind.switch) for kind in kinds}:
            yield f"at least one {what}: other keys"
