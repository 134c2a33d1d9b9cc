"""From the TOML file and the options to L{Settings}, or every reason why not."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import msgspec
import tomli

from pcapsvc.core.endpoint import endpoint_url
from pcapsvc.core.errors import Problem, SettingsError, shown
from pcapsvc.core.fields import check_fields, unknown_key
from pcapsvc.settings.files import check_certificates, check_key, is_one_line, read_secret, read_text
from pcapsvc.settings.listen import absolute_listener, check_listener, read_listener
from pcapsvc.settings.options import OPTIONS
from pcapsvc.settings.rules import broken_rules
from pcapsvc.settings.schema import SECRETS, SECTIONS, General, InterfaceAlias, Settings, keys_of
from pcapsvc.settings.secret import Secret

_NONE_GIVEN: Mapping[str, Any] = MappingProxyType({})

#: Sections without which something is left out, rather than taken by default.
_OPTIONAL = ("syslog",)


def load_settings(path: str | None, overrides: Mapping[str, Any] = _NONE_GIVEN) -> Settings:
    """
    Read the configuration. A file that a setting names (a secret, a certificate)
    is read too.

    @param path: the TOML file; L{None} for none.
    @param overrides: the options that were given, by their name in L{OPTIONS},
        with their values as on the command line; C{True} or C{False} for a flag.

    @raise SettingsError: with every problem.
    """
    problems: list[Problem] = []
    document = {} if path is None else _read_document(path, problems)
    tables = _tables(document or {}, problems)
    origins = _apply_options(tables, overrides, problems)
    sections: dict[str, Any] = {}
    for name, structure in SECTIONS.items():
        if name in tables or name not in _OPTIONAL:
            sections[name] = structure(**_read_section(name, tables.get(name, {}), problems))
    settings = Settings(**sections, interfaces=_read_interfaces(document or {}, problems))
    if document is not None:
        problems += broken_rules(settings, {problem.path for problem in problems})
    if problems:
        raise SettingsError([_as_told(problem, origins) for problem in problems])
    return settings


def _as_told(problem: Problem, origins: Mapping[str, str]) -> Problem:
    """
    A problem at the place where the operator made it. An address may have a
    password in it, though it must not: a value that may be one isn't shown.
    """
    credentials = problem.value is not None and "@" in problem.value
    return Problem(
        path=origins.get(problem.path, problem.path),
        value=None if credentials else problem.value,
        rule=problem.rule,
    )


def _read_document(path: str, problems: list[Problem]) -> dict[str, Any] | None:
    try:
        return tomli.loads(read_text(path))
    except tomli.TOMLDecodeError as error:
        problems.append(Problem(path=path, rule=f"is not valid TOML: {error}"))
    except RecursionError:
        problems.append(Problem(path=path, rule="is not valid TOML: it is nested too deeply"))
    except ValueError as error:
        problems.append(Problem(path=path, rule=str(error)))
    return None


def _tables(document: Mapping[str, Any], problems: list[Problem]) -> dict[str, dict[str, Any]]:
    """The sections of a document that are known, each with the keys that are, for us to change."""
    tables: dict[str, dict[str, Any]] = {}
    for name, table in document.items():
        if name in SECTIONS:
            if isinstance(table, dict):
                known = keys_of(name)
                tables[name] = {key: value for key, value in table.items() if key in known}
                problems += [unknown_key(key, known, prefix=f"{name}.") for key in table if key not in known]
            else:
                problems.append(Problem(path=name, rule=f"must be one section, [{name}]"))
        elif name != "interface":
            homes = [section for section in SECTIONS if name in keys_of(section)]
            problems.append(
                Problem(path=name, rule=f"stands in no section; it belongs to [{'] or ['.join(homes)}]")
                if homes
                else unknown_key(name, [*SECTIONS, "interface"])
            )
    return tables


def _apply_options(
    tables: dict[str, dict[str, Any]], overrides: Mapping[str, Any], problems: list[Problem]
) -> dict[str, str]:
    """
    Put the options over the file's keys.

    @return: the option that each key comes from, by the key's path.
    """
    origins: dict[str, str] = {}
    for name, value in overrides.items():
        option = OPTIONS.get(name)
        if option is None:
            problem = unknown_key(name, OPTIONS, prefix="--")
            problems.append(dataclasses.replace(problem, rule=problem.rule.replace("key", "option")))
            continue
        table = tables.setdefault(option.section, {})
        if option.kind == "number" and re.fullmatch(r"[+-]?[0-9]{1,30}", str(value)):
            value = int(value)
        table[option.key] = value
        secret = SECRETS.get(option.section)
        if secret is not None and option.key == secret.key:
            table.pop(secret.file_key, None)
        if option.section == "redis":
            table.setdefault("listen", True)
        origins[option.path] = f"--{name}"
    return origins


def _read_section(section: str, table: dict[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """The values of one section that hold, by field."""
    prefix = f"{section}."
    secret = SECRETS.get(section)
    secret_keys = () if secret is None else (secret.key, secret.file_key)
    plain = {
        key: value
        for key, value in table.items()
        if key not in secret_keys and not (value == "" and _may_be_empty(section, key))
    }
    values, wrong = check_fields(SECTIONS[section], plain, prefix=prefix)
    problems += wrong
    if secret is not None:
        found, wrong = _secret(table, secret.key, secret.file_key, prefix)
        problems += wrong
        if found is not None:
            values[secret.field] = found
    for field, key, convert in _CONVERSIONS.get(section, ()):
        if field in values:
            try:
                values[field] = convert(values[field])
            except ValueError as error:
                problems.append(Problem(path=prefix + key, value=shown(table[key]), rule=str(error)))
                del values[field]
    return {**_defaults_that_follow(section, values), **values}


def _secret(
    table: Mapping[str, Any], key: str | None, file_key: str, prefix: str
) -> tuple[Secret | None, list[Problem]]:
    """The secret that a section gives, by itself or in a file, and what is wrong; an empty text is none."""
    given = "" if key is None else table.get(key, "")
    path = table.get(file_key, "")
    problems: list[Problem] = []
    found: Secret | None = None
    if given != "":
        if isinstance(given, str) and is_one_line(given):
            found = Secret(given)
        else:
            problems.append(Problem(path=f"{prefix}{key}", rule="must be one line of text"))
    if path != "":
        rule = ""
        if not isinstance(path, str):
            rule = "must be the path of a file"
        elif given != "":
            rule = f"must not be given beside {key}: either is enough"
        else:
            try:
                found = read_secret(path)
            except ValueError as error:
                rule = str(error)
        if rule:
            problems.append(Problem(path=prefix + file_key, value=shown(path), rule=rule))
    return found, problems


def _read_interfaces(document: Mapping[str, Any], problems: list[Problem]) -> tuple[InterfaceAlias, ...]:
    given = document.get("interface", [])
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        problems.append(Problem(path="interface", rule="must be sections in double brackets, [[interface]]"))
        return ()
    interfaces: list[InterfaceAlias] = []
    for index, table in enumerate(given):
        prefix = f"interface[{index}]."
        values, wrong = check_fields(InterfaceAlias, table, prefix=prefix)
        problems += wrong
        if "name" not in table:
            problems.append(Problem(path=f"{prefix}name", rule="must be given"))
        elif "name" in values:
            if any(each.name == values["name"] for each in interfaces):
                problems.append(
                    Problem(path=f"{prefix}name", value=shown(values["name"]), rule="must not be given twice")
                )
            interfaces.append(InterfaceAlias(**values))
    return tuple(interfaces)


def _may_be_empty(section: str, key: str) -> bool:
    """Whether an empty text stands for "not given", as it did: where a key has no default."""
    return any(
        each.default is None for each in msgspec.structs.fields(SECTIONS[section]) if each.encode_name == key
    )


def _defaults_that_follow(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults that must not contradict a limit which was given without them."""
    if section != "general":
        return {}
    usual = General()
    return {
        "default_timeout_seconds": min(
            usual.default_timeout_seconds, values.get("max_timeout_seconds", usual.max_timeout_seconds)
        ),
        "snap_length": min(usual.snap_length, values.get("max_snap_length", usual.max_snap_length)),
        "max_memory_bytes": max(usual.max_memory_bytes, values.get("max_bytes", usual.max_bytes)),
    }


def _absolute(path: str) -> str:
    """A path that stays the same where a daemon leaves the folder in which it was started."""
    try:
        return os.path.abspath(path)
    except OSError:
        raise ValueError("must begin with '/', as the folder in which this is started is gone") from None


def _listener(text: str) -> str:
    # Twisted's endpoints take what systemd says out of the environment, where something has imported
    # them before: they alone know it then, and tell it later.
    is_there = "twisted.internet.endpoints" not in sys.modules
    check_listener(read_listener(text), os.environ if is_there else None)
    return absolute_listener(text, _absolute)


def _checked_certificates(given: str | bool) -> str | bool:
    if not isinstance(given, str):
        return given
    check_certificates(given)
    return _absolute(given)


def _checked_key(path: str) -> str:
    check_key(path)
    return _absolute(path)


def _checked_secret_file(path: str) -> str:
    read_secret(path)
    return _absolute(path)


def _kafka_servers(given: tuple[str, ...]) -> tuple[str, ...]:
    """The servers, without empty entries, as they were."""
    servers = tuple(filter(None, given))
    for server in servers:
        host, colon, port = server.rpartition(":")
        bare = ":" not in host or (host.startswith("[") and host.endswith("]"))
        if not (colon and host and bare and re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 65536):
            raise ValueError('must be a list of servers, each "HOST:PORT", or "[ADDRESS]:PORT" for IPv6')
    return servers


def _queue_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        holds = bool(parts.hostname) and parts.port != 0
    except ValueError:
        holds = False
    if not holds:
        raise ValueError(
            "must be an http:// or https:// URL with a host, and with a port from 1 to 65535 or none"
        )
    return url


#: What is made of values that hold: field, key, and what raises L{ValueError} with the rule.
_CONVERSIONS: dict[str, tuple[tuple[str, str, Callable[[Any], Any]], ...]] = {
    "general": (
        ("local_dir", "localdir", _absolute),
        ("max_request_age_seconds", "maxrequestage", lambda seconds: seconds or None),
        ("max_request_rate", "maxrequestrate", lambda rate: rate or None),
    ),
    "delivery": (
        ("timeout_seconds", "timeout", lambda seconds: seconds or None),
        ("spool_dir", "spooldir", _absolute),
    ),
    "cloudshark": (
        ("timeout_seconds", "timeout", lambda seconds: seconds or None),
        ("verify", "verify", _checked_certificates),
    ),
    "redis": (("ca_file", "cafile", _checked_certificates),),
    "kafka": (
        ("server", "server", _kafka_servers),
        ("ssl_cafile", "ssl_cafile", _checked_certificates),
        ("ssl_certfile", "ssl_certfile", _checked_certificates),
        ("ssl_keyfile", "ssl_keyfile", _checked_key),
        ("sasl_oauth_token_file", "sasl_oauth_tokenfile", _checked_secret_file),
    ),
    "sqs": (("endpoint", "endpoint", endpoint_url), ("url", "url", _queue_url)),
    "s3": (
        ("endpoint", "endpoint", endpoint_url),
        ("endpoints", "endpoints", lambda endpoints: tuple(map(endpoint_url, endpoints))),
    ),
    "http": (("listen", "listen", _listener),),
}
