"""C{pcapctl.toml}: profiles, each with its transport, its nodes and the defaults of requests."""

from __future__ import annotations

import os
import tomllib
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from pcapsvc.client.status import ExitStatus, UsageProblem
from pcapsvc.core.errors import Problem
from pcapsvc.core.fields import check_fields
from pcapsvc.core.text import one_line

#: The environment variables with secrets, and with the name of a profile.
TOKEN_VARIABLE, PASSWORD_VARIABLE = "PCAPCTL_TOKEN", "PCAPCTL_PASSWORD"
PROFILE_VARIABLE = "PCAPCTL_PROFILE"

# A device, such as /dev/zero, may not come to an end.
_MOST_FILE_BYTES = 1024 * 1024


Texts = Annotated[tuple[str, ...] | str, Meta(description="text, or a list of texts")]
FilePath = Annotated[str, Meta(min_length=1, description="the path of a file")]


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """
    One profile. The keys are those of its table.

    @ivar via: where requests are sent.
    @ivar reports: where events come from; empty for the usual place beside C{via}.
    @ivar apis: the HTTP APIs of nodes. In a host name, C{*} stands for any label.
    @ivar defaults: the fields of requests that an option may replace.
    """

    via: Texts = ()
    reports: Texts = ()
    apis: Texts = ()
    tokenfile: FilePath | None = None
    passwordfile: FilePath | None = None
    cafile: FilePath | None = None
    defaults: Annotated[dict[str, Any], Meta(description="a table")] = msgspec.field(default_factory=dict)


# An address may have a password.
_MAY_HAVE_SECRETS = ("via", "reports", "apis")


def configuration_file(environment: Mapping[str, str]) -> Path:
    """Where the configuration is, whether it exists or not."""
    home = environment.get("XDG_CONFIG_HOME") or ""
    # The XDG Base Directory Specification: a relative path is invalid, and is to be ignored.
    directory = Path(home) if os.path.isabs(home) else Path(environment.get("HOME") or "/") / ".config"
    return directory / "pcapctl.toml"


def load_profiles(path: Path) -> tuple[Mapping[str, Profile], str | None]:
    """
    Read the configuration.

    @return: the profiles by name, and the name of the default one. A missing file has none.

    @raise UsageProblem: with everything that is wrong with it.
    """
    try:
        document = tomllib.loads(_text_in(path))
    except FileNotFoundError:
        return {}, None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise UsageProblem(f"{path}: {problem}") from None
    except RecursionError:
        raise UsageProblem(f"{path}: is nested too deeply") from None
    except ValueError:
        # Python's limit (the Standard Library, "Integer string conversion length limitation").
        raise UsageProblem(f"{path}: a number has too many digits") from None
    problems: list[Problem] = []
    profiles: dict[str, Profile] = {}
    tables = document.pop("profiles", {})
    default = document.pop("default", None)
    problems += [Problem(path=key, rule="is not a known key") for key in document]
    if not isinstance(tables, dict):
        problems.append(Problem(path="profiles", rule="must be a table"))
        tables = {}
    for name, table in tables.items():
        if not isinstance(table, dict):
            problems.append(Problem(path=f"profiles.{name}", rule="must be a table"))
            continue
        values, found = check_fields(Profile, table, prefix=f"profiles.{name}.", secrets=_MAY_HAVE_SECRETS)
        problems += found
        if not found:
            profile = Profile(**values)
            # In any case, a key is the field that an option may replace.
            defaults = {key.lower(): value for key, value in profile.defaults.items()}
            profiles[name] = msgspec.structs.replace(profile, defaults=defaults)
    if default is not None and (not isinstance(default, str) or default not in tables):
        problems.append(Problem(path="default", rule="must be the name of a profile"))
    if problems:
        raise UsageProblem(f"{path}: " + "; ".join(map(str, problems)))
    return profiles, default


def choose_profile(name: str | None, environment: Mapping[str, str]) -> Profile:
    """
    The profile that an option, the environment or the configuration names; or an empty one.

    @raise UsageProblem: if there is none of that name.
    """
    path = configuration_file(environment)
    profiles, default = load_profiles(path)
    if name is None:
        name = environment.get(PROFILE_VARIABLE) or default
    if name is None:
        return Profile()
    if name not in profiles:
        known = ", ".join(sorted(profiles)) or "none"
        raise UsageProblem(f"{path} has no profile {name!r} (it has: {known})")
    return profiles[name]


def print_profiles(options: Namespace) -> ExitStatus:
    """Run C{pcapctl profiles}: print their names."""
    for name in load_profiles(configuration_file(os.environ))[0]:
        print(one_line(name, most=1000))
    return ExitStatus.DELIVERED


def texts(value: tuple[str, ...] | str) -> tuple[str, ...]:
    """A list of texts that may be written as one text."""
    return (value,) if isinstance(value, str) else value


def read_secret(path: str) -> str:
    """
    The secret in a file: its only line.

    @raise UsageProblem: if it can't be read, or has more lines than one.
    """
    try:
        text = _text_in(Path(os.path.expanduser(path)))
    except UnicodeDecodeError:
        raise UsageProblem(f"{path}: not UTF-8") from None
    except (OSError, ValueError) as problem:
        raise UsageProblem(f"{path}: {getattr(problem, 'strerror', None) or 'not a path'}") from None
    lines = text.splitlines()
    if len(lines) != 1 or not lines[0]:
        raise UsageProblem(f"{path}: must have one line, the secret")
    return lines[0]


def _text_in(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(_MOST_FILE_BYTES + 1)
    if len(content) > _MOST_FILE_BYTES:
        raise UsageProblem(f"{path}: is longer than {_MOST_FILE_BYTES} bytes")
    return content.decode("utf-8-sig")
