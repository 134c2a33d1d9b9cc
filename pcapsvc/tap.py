"""The C{twistd} command: its options, and the service for a configuration."""

from __future__ import annotations

import itertools
import re
import sys
import time
from collections.abc import Mapping, Sequence
from traceback import format_exception
from types import TracebackType
from typing import Any, ClassVar, NoReturn

from twisted.application.service import IService, MultiService
from twisted.python import usage

from pcapsvc import __version__
from pcapsvc.components import COMPONENTS
from pcapsvc.core.errors import PcapsvcError, Problem, SettingsError, shown
from pcapsvc.core.fields import unknown_key
from pcapsvc.core.mask import of_process
from pcapsvc.host.background_log import log_in_background
from pcapsvc.host.garbage import LongLivedObjects
from pcapsvc.host.signals import ignore_reload
from pcapsvc.settings import Option, load_settings
from pcapsvc.settings.secret import secrets_in
from pcapsvc.settings.section import Section

#: The environment variable with the path of the configuration, for C{pcapsvc.tac}.
CONFIG_VARIABLE = "PCAPSVC_CONFIG"

#: The options of the command line that override a key, by name.
OPTIONS: dict[str, Option] = {name: option for name, (option, _) in COMPONENTS.options().items()}

# The values of a flag (Go, strconv.ParseBool).
_FLAG_VALUES = {
    **dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True),
    **dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False),
}


class Options(usage.Options):
    """C{twistd pcapsvc [options]}. An option that is given overrides its key in the configuration."""

    synopsis = "[options]"
    longdesc = "Captures packets on request, and delivers the captures."

    optParameters: ClassVar[list[list[Any]]] = [
        ["config", None, None, "Path of the configuration, a TOML file. No default."],
        *([option.name, None, None, option.help] for option in OPTIONS.values() if option.kind != "flag"),
    ]
    optFlags: ClassVar[list[list[Any]]] = [
        [option.name, None, option.help] for option in OPTIONS.values() if option.kind == "flag"
    ]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._flags: dict[str, bool | str] = {}

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """
        Parse the options. They may also be given as in the original (Go, package C{flag}): with
        one dash, and flags with a value, C{-upload=false}.
        """
        words = self._as_getopt_takes(sys.argv[1:] if options is None else options)
        try:
            super().parseOptions(words)  # type: ignore[no-untyped-call]
        except usage.UsageError as error:
            # getopt says "option --confg not recognized".
            unknown = re.fullmatch(r"option --?(\S+) not recognized", str(error))
            if unknown is None:
                raise
            known = [name.rstrip("=") for name in self.longOpt]
            problem = unknown_key(unknown[1], known, prefix="--", kind="option")
            raise usage.UsageError(str(problem)) from None

    def parseArgs(self, *arguments: str) -> None:
        """Reject everything that is not an option."""
        if arguments:
            raise usage.UsageError(f"{shown(arguments[0])} is not an option; no other arguments are accepted")

    def opt_version(self) -> NoReturn:
        """Print the versions of pcapsvc and of Twisted, and exit."""
        print(f"pcapsvc version: {__version__}")  # noqa: T201
        super().opt_version()  # type: ignore[no-untyped-call]
        raise SystemExit(0)

    def overrides(self) -> dict[str, Any]:
        """
        The options that were given, by name, with their values as they were typed. A flag is
        C{True} or C{False}; any other text is left for the settings to reject.
        """
        given: dict[str, Any] = {}
        for name, option in OPTIONS.items():
            if option.kind != "flag":
                value = self[name]
            else:
                value = self._flags.get(name, True if self[name] else None)
            if value is not None:
                given[name] = value
        return given

    def _as_getopt_takes(self, words: Sequence[str]) -> list[str]:
        """The command line as getopt accepts it: two dashes, and no flags of ours, which are remembered."""
        known = {name.rstrip("=") for name in self.longOpt}
        taken: list[str] = []
        left = iter(words)
        for word in left:
            name, equals, value = re.sub(r"\A--?", "", word).partition("=")
            if not word.startswith("-") or word == "--":
                # Options end here, for Go as for getopt.
                taken.append(word)
                break
            if name not in known:
                taken.append(word)
            elif name in OPTIONS and OPTIONS[name].kind == "flag":
                self._flags[name] = _FLAG_VALUES.get(value, value) if equals else True
            else:
                taken.append(f"--{name}{equals}{value}")
                if not equals and f"{name}=" in self.longOpt:
                    # The next word is its value, even if it looks like an option.
                    taken += itertools.islice(left, 1)
        return [*taken, *left]


def makeService(options: Options) -> IService:
    """
    The service for the options and the configuration, not started.

    If they are wrong, every problem is printed on standard error, and the process exits with
    status 1 before it becomes a daemon.
    """
    return _service(options["config"], options.overrides())


def service_from_environment(environment: Mapping[str, str]) -> IService:
    """The service for the configuration that L{CONFIG_VARIABLE} names; otherwise as L{makeService}."""
    path = environment.get(CONFIG_VARIABLE)
    if not path:
        _refuse(SettingsError([Problem(path=CONFIG_VARIABLE, rule="must be the path of the configuration")]))
    return _service(path, {})


def _service(path: str | None, overrides: Mapping[str, Any]) -> IService:
    ignore_reload()
    try:
        settings = load_settings(path, COMPONENTS, overrides)
    except SettingsError as error:
        _refuse(error)
    of_process.hide(secrets_in(settings))
    if not any(section.uses_twisted_tls() for section in settings.enabled(Section)):
        # Twisted imports OpenSSL with the reactor if it is installed, and does without if it isn't;
        # it costs 15 MB. None makes an import fail (the Language Reference, "The module cache").
        sys.modules.setdefault("OpenSSL", None)  # type: ignore[arg-type]
    # Imported here: the reactor, because importing it installs it; and the rest, because it takes a
    # while, during which a SIGHUP would end the process.
    from twisted.internet import reactor

    from pcapsvc import app

    # Twisted's is time.time, which an operator or NTP may change: captures would end early or never,
    # and spooled ones would expire. All time limits go by the reactor.
    reactor.seconds = time.monotonic  # type: ignore[method-assign]
    try:
        node = app.build(settings, reactor)
    except SettingsError as error:
        _refuse(error)
    sys.excepthook = _print_fatal
    service = MultiService()  # type: ignore[no-untyped-call]
    for each in (log_in_background(), node.service, LongLivedObjects()):
        each.setServiceParent(service)  # type: ignore[no-untyped-call]
    return service


def _print_fatal(_: type[BaseException], error: BaseException, __: TracebackType | None) -> None:
    """An error that ends the process at its start: without a traceback, if it is one of ours."""
    ours = isinstance(error, PcapsvcError)
    words = f"pcapsvc cannot start: {error}" if ours else "".join(format_exception(error))
    # twistd has replaced sys.stderr with its log, which may not be written yet.
    print(of_process(words), file=sys.__stderr__)


def _refuse(error: SettingsError) -> NoReturn:
    lines = "".join(f"  {problem}\n" for problem in error.problems)
    sys.stderr.write(f"pcapsvc cannot start; the configuration has problems:\n{lines}")
    raise SystemExit(1)
