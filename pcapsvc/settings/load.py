"""Reads the TOML file and the options into L{Settings}, or reports every problem with them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec
import tomli

from pcapsvc.core.errors import Problem, SettingsError, shown
from pcapsvc.core.fields import check_fields, fields_by_key, misspelt, unknown_key
from pcapsvc.core.names import canonical_names
from pcapsvc.settings.broker import events_among_requests
from pcapsvc.settings.catalogue import Catalogue
from pcapsvc.settings.files import BadLines, is_one_line, read_secret, read_text
from pcapsvc.settings.interface import (
    INTERFACE,
    InterfaceSettings,
    history_problems,
    history_without_effect,
    interface_keys,
    may_be_empty,
)
from pcapsvc.settings.kinds import conversion_of
from pcapsvc.settings.secret import Secret
from pcapsvc.settings.section import (
    Conflict,
    DestinationSection,
    Option,
    SecretKeys,
    Section,
    SourceSection,
)
from pcapsvc.settings.settings import Settings

_NONE_GIVEN: Mapping[str, Any] = MappingProxyType({})
# At the end of a path: which entry of a list.
_INDEX = re.compile(r"\[[0-9]+\]\Z")


def load_settings(
    path: str | None, components: Catalogue, overrides: Mapping[str, Any] = _NONE_GIVEN
) -> Settings:
    """
    Read and validate the configuration. A file that a setting names (a secret, a
    certificate) is read too.

    @param path: the path of the TOML file, if there is one.
    @param components: what can be configured.
    @param overrides: the options that were given, by name, with their values as on the
        command line; C{True} or C{False} for a flag.

    @raise SettingsError: with every problem.
    """
    problems: list[Problem] = []
    document = {} if path is None else _read_document(path, problems)
    if document is not None:
        document = _any_case(document, _tables_in("", components.tables()))
    tables: dict[str, dict[str, Any]] = {}
    _read_tables(document or {}, "", components.tables(), tables, problems)
    origins = _apply_options(tables, components.options(), overrides, problems)
    _inherit(tables, components.sections, origins)
    paths: dict[str, str] = {}
    settings = Settings(
        sections=tuple(
            _read_section(section, tables.get(section.table or "", {}), problems)
            for section in components.sections
            if section.table in tables or not section.only_if_given
        ),
        interfaces=_read_interfaces(document or {}, problems, paths),
    )
    if document is not None:
        wrong = {_split(problem.path)[0] for problem in problems}
        problems += _broken_rules(settings, components, paths, wrong)
    if problems:
        # The problem with a value that is inherited is that of its origin, and is reported once.
        raise SettingsError([*dict.fromkeys(_as_given(problem, origins) for problem in problems)])
    return settings


def _as_given(problem: Problem, origins: Mapping[str, str]) -> Problem:
    """
    A problem at the option or key that the operator used. Addresses must not contain passwords,
    but might, so a value that looks like one isn't shown.
    """
    credentials = problem.value is not None and "@" in problem.value
    path, index = _split(problem.path)
    return Problem(
        path=origins.get(path, path) + index,
        value=None if credentials else problem.value,
        rule=problem.rule,
    )


def _split(path: str) -> tuple[str, str]:
    """The path of a key, and which entry of its list, in brackets; an empty text if it is the key itself."""
    index = _INDEX.search(path)
    return (path, "") if index is None else (path[: index.start()], index[0])


def _read_document(path: str, problems: list[Problem]) -> dict[str, Any] | None:
    try:
        text = read_text(path, may_be_pipe=True)
    except ValueError as error:
        problems.append(Problem(path=path or shown(path), rule=str(error)))
        return None
    try:
        return tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        problems.append(Problem(path=path, rule=f"is not valid TOML: {error}"))
    except RecursionError:
        problems.append(Problem(path=path, rule="is not valid TOML: it is nested too deeply"))
    except ValueError:
        # From int(), whose advice is for programmers.
        problems.append(Problem(path=path, rule="is not valid TOML: a number has too many digits"))
    return None


def _read_tables(
    given: Mapping[str, Any],
    path: str,
    known: Mapping[str, Collection[str]],
    tables: dict[str, dict[str, Any]],
    problems: list[Problem],
) -> None:
    """
    Collect the keys of a table, and of the tables nested in it.

    @param path: the table's; empty for the whole document.
    @param known: the keys of each table, by its path.
    @param tables: receives the values of known keys, by table.
    """
    keys = known.get(path, ())
    own = tables.setdefault(path, {}) if path in known else {}
    within_here = _tables_in(path, known)
    for name, value in _any_case(given, [*keys, *within_here]).items():
        within = f"{path}.{name}" if path else name
        if name in keys:
            own[name] = value
        elif name in within_here and within != INTERFACE:
            if isinstance(value, dict):
                _read_tables(value, within, known, tables, problems)
            else:
                problems.append(Problem(path=within, rule=f"must be a section, [{within}]"))
        elif within != INTERFACE:
            problems.append(_unknown(name, path, known))


def _unknown(name: str, path: str, known: Mapping[str, Collection[str]]) -> Problem:
    """The problem that a table has a key that isn't known there."""
    if not path:
        homes = [table for table, keys in known.items() if name.casefold() in keys]
        if homes:
            return Problem(path=name, rule=f"is outside any section; it belongs in [{'] or ['.join(homes)}]")
    # First as [local] dir, which is localdir in another section.
    for key in (path + name.casefold(), name.casefold()):
        homes = [f"{table}.{key}" for table, keys in known.items() if table and key in keys]
        if len(homes) == 1:
            # It is likelier than one of this section with a similar name.
            return Problem(path=f"{path}.{name}", rule=f"is not a known key; did you mean {homes[0]!r}?")
    candidates = [*known.get(path, ()), *_tables_in(path, known)]
    return unknown_key(name, candidates, prefix=f"{path}." if path else "")


def _tables_in(path: str, known: Mapping[str, Collection[str]]) -> list[str]:
    """The names of the tables within a table, or in the whole document."""
    prefix = f"{path}." if path else ""
    tables = [table.removeprefix(prefix).partition(".")[0] for table in known if table.startswith(prefix)]
    return [name for name in dict.fromkeys([*tables, *([] if path else [INTERFACE])]) if name]


def _any_case(given: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """
    A table by the names that its keys mean: as in the original, they may be in any case (see
    L{canonical_names}). Tables that mean the same one are merged, such as C{[S3]} and C{[s3]}.
    """
    meant = canonical_names(given, names, lambda value: value == "")
    spellings: dict[str, list[str]] = {}
    for key in given:
        [name] = canonical_names({key: None}, names, lambda _: False)
        spellings.setdefault(name, []).append(key)
    for name, keys in spellings.items():
        values = [given[key] for key in keys]
        if len(values) > 1 and all(isinstance(value, dict) for value in values):
            exact = [given[name]] if name in given else []
            meant[name] = {key: value for table in [*values, *exact] for key, value in table.items()}
        elif len(values) > 1 and name == INTERFACE and all(isinstance(value, list) for value in values):
            meant[name] = [each for value in values for each in value]
    return meant


def _apply_options(
    tables: dict[str, dict[str, Any]],
    options: Mapping[str, tuple[Option, type[Section]]],
    overrides: Mapping[str, Any],
    problems: list[Problem],
) -> dict[str, str]:
    """
    Override the file's keys.

    @return: the option that each key comes from, by the key's path.
    """
    origins: dict[str, str] = {}
    for name, value in overrides.items():
        if name not in options:
            problem = unknown_key(name, options, prefix="--")
            problems.append(msgspec.structs.replace(problem, rule=problem.rule.replace("key", "option")))
            continue
        option, section = options[name]
        table = tables.setdefault(section.table or "", {})
        if option.kind == "number" and re.fullmatch(r"[+-]?[0-9]{1,30}", str(value)):
            value = int(value)
        table[option.key] = value
        for secret in section.secrets:
            if option.key == secret.key:
                table.pop(secret.file_key, None)
        if option.implies is not None:
            table.setdefault(option.implies, True)
        origins[section.key_path(option.key)] = f"--{name}"
    return origins


def _inherit(
    tables: dict[str, dict[str, Any]], sections: Sequence[type[Section]], origins: dict[str, str]
) -> None:
    """
    Have sections take keys from the tables that they inherit from.

    @param origins: receives where each of them comes from, by its path.
    """
    for section in sections:
        if section.inherits is None or section.table not in tables:
            continue
        own, other = tables[section.table], tables.get(section.inherits, {})
        for key, value in section.inherited(own, other).items():
            if key not in own:
                own[key] = value
                path = f"{section.inherits}.{key}"
                origins[section.key_path(key)] = origins.get(path, path)


def _read_section(section: type[Section], table: Mapping[str, Any], problems: list[Problem]) -> Section:
    """A section with the valid values, and defaults for the rest."""
    prefix = section.key_path("")
    fields = fields_by_key(section)
    secret_fields = {secret.field for secret in section.secrets}
    plain = {
        key: value
        for key, value in table.items()
        if key in fields
        and fields[key].name not in secret_fields
        # An empty text means "not given", as in the original, if the key has no default.
        and not (value == "" and fields[key].default is None)
    }
    values, wrong = check_fields(section, plain, prefix=prefix)
    problems += wrong
    for secret in section.secrets:
        found, wrong = _read_secret(table, secret, prefix)
        problems += wrong
        if found is not None:
            values[secret.field] = found
    for key, each in fields.items():
        conversion = conversion_of(each.type)
        if conversion is not None and each.name in values:
            try:
                values[each.name] = conversion(values[each.name])
            except ValueError as error:
                whole = Problem(path=prefix + key, value=shown(table[key]), rule=str(error))
                entries = _entry_problems(conversion, prefix + key, values.pop(each.name))
                problems += [*entries] or [whole]
    return section(**{**section.dependent_defaults(values), **values})


def _entry_problems(conversion: Callable[[Any], Any], path: str, value: Any) -> Iterator[Problem]:
    """The problems with single entries of a list."""
    for index, entry in enumerate(value if isinstance(value, tuple) else ()):
        try:
            conversion((entry,))
        except ValueError as error:
            yield Problem(path=f"{path}[{index}]", value=shown(entry), rule=str(error))


def _read_secret(table: Mapping[str, Any], secret: SecretKeys, prefix: str) -> tuple[Any, list[Problem]]:
    """A secret, given directly or in a file, and the problems with it. An empty text means "not given"."""
    given = "" if secret.key is None else table.get(secret.key, "")
    path = table.get(secret.file_key, "")
    problems: list[Problem] = []
    found: Any = None
    if given != "":
        if isinstance(given, str) and is_one_line(given):
            found = Secret(given)
        else:
            problems.append(Problem(path=f"{prefix}{secret.key}", rule="must be one line of text"))
    if path != "":
        rules: Sequence[str] = ()
        if not isinstance(path, str):
            rules = ["must be the path of a file"]
        elif given != "":
            rules = [f"must not be given together with {secret.key}; give one of them"]
        else:
            try:
                found = (secret.read or read_secret)(path)
            except BadLines as error:
                rules = error.rules
            except ValueError as error:
                rules = [str(error)]
        problems += [Problem(path=prefix + secret.file_key, value=shown(path), rule=rule) for rule in rules]
    return found, problems


def _read_interfaces(
    document: Mapping[str, Any], problems: list[Problem], paths: dict[str, str]
) -> tuple[InterfaceSettings, ...]:
    """
    The interfaces that are configured.

    @param paths: receives the path of each, with a dot, by its name.
    """
    given = document.get(INTERFACE, [])
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        problems.append(Problem(path=INTERFACE, rule="must be a list of sections, [[interface]]"))
        return ()
    interfaces: list[InterfaceSettings] = []
    for index, each in enumerate(given):
        # An empty text means "not given", as in the sections.
        table = {
            key: value
            for key, value in _any_case(each, interface_keys()).items()
            if not (value == "" and may_be_empty(key))
        }
        prefix = f"{INTERFACE}[{index}]."
        values, wrong = check_fields(InterfaceSettings, table, prefix=prefix)
        problems += [*wrong, *history_without_effect(table, prefix)]
        if "name" not in {*table, *misspelt(InterfaceSettings, table)}:
            problems.append(Problem(path=f"{prefix}name", rule="must be given"))
        elif "name" in values:
            if any(known.name == values["name"] for known in interfaces):
                problems.append(
                    Problem(path=f"{prefix}name", value=shown(values["name"]), rule="must not be given twice")
                )
            interfaces.append(InterfaceSettings(**values))
            paths.setdefault(values["name"], prefix)
    return tuple(interfaces)


def _broken_rules(
    settings: Settings, components: Catalogue, paths: Mapping[str, str], wrong: Collection[str]
) -> Iterator[Problem]:
    """
    The rules between keys that the settings break.

    @param paths: the path of each C{[[interface]]}, with a dot, by its name.
    @param wrong: the paths that have a problem already.
    """

    def is_wrong(path: str) -> bool:
        return any(f"{path}.".startswith(f"{each}.") for each in wrong)

    for problem in (
        *_none_enabled(settings, "source", components.sources),
        *_none_enabled(settings, "destination", components.destinations),
        *_shared_directories(settings),
        *events_among_requests(settings),
        *history_problems(settings, paths),
        *(problem for section in settings.sections for problem in section.problems(settings)),
    ):
        others = problem.others if isinstance(problem, Conflict) else ()
        if not any(map(is_wrong, (problem.path, *others))):
            yield problem


def _none_enabled(
    settings: Settings, what: str, kinds: Sequence[type[SourceSection] | type[DestinationSection]]
) -> Iterator[Problem]:
    if not any(settings.enabled(kind) for kind in kinds):
        first, *others = (kind.key_path(kind.switch) for kind in kinds)
        listed = " or ".join(filter(None, (", ".join([first, *others[:-1]]), *others[-1:])))
        yield Conflict(
            path=first, others=tuple(others), rule=f"at least one {what} must be enabled: {listed}"
        )


def _shared_directories(settings: Settings) -> Iterator[Problem]:
    """No component writes into the directory of another."""
    owners: dict[str, str] = {}
    for section in settings.sections:
        for key, directory in section.directories():
            path = section.key_path(key)
            owner = owners.setdefault(directory, path)
            if owner != path:
                yield Conflict(
                    path=owner,
                    others=(path,),
                    value=shown(directory),
                    rule=f"must not be the same directory as {path}",
                )
