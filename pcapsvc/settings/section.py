"""
Base classes for the settings of components.

Each source, destination, reporter, encoder and host service has a subclass of one of these in
its C{settings.py}, and is listed in L{pcapsvc.components}. Everything else follows from that
list: the tables, keys and options of the configuration, how they are validated, which values
are secret, and how the component is built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec

from pcapsvc.core.compression import CompressionChoice
from pcapsvc.core.errors import Problem
from pcapsvc.core.fields import fields_by_key

if TYPE_CHECKING:
    from twisted.application.service import IService

    from pcapsvc.core.event import EventFactory
    from pcapsvc.core.request import OptionFields
    from pcapsvc.interfaces.delivery import IDestination, IEncoder
    from pcapsvc.interfaces.reports import IReporter
    from pcapsvc.interfaces.requests import IRequestSink, IRequestSource
    from pcapsvc.interfaces.threads import RunInThread
    from pcapsvc.settings.settings import Settings


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """
    A command line option that overrides a key of its section.

    @ivar name: as on the command line, without its dashes.
    @ivar key: the key that it overrides.
    @ivar kind: what its value is. A flag has no value, and means C{true}.
    @ivar only: whether the key can only be set by this option, and not in the file.
    @ivar implies: a key that is set to C{true} as well, unless the file sets it.
    """

    name: str
    key: str
    kind: Literal["text", "number", "flag"]
    help: str
    only: bool = False
    implies: str | None = None


class SecretKeys(msgspec.Struct, frozen=True, kw_only=True):
    """
    How a section is given a secret. Its field holds a L{pcapsvc.settings.secret.Secret}, or what C{read}
    returns.

    @ivar field: the field that holds it.
    @ivar key: the key whose value it is; L{None} if it may only be in a file.
    @ivar file_key: the key whose value is the path of a file that holds it.
    @ivar read: reads the file; raises C{ValueError} with a rule that continues from the path. L{None} is
        L{pcapsvc.settings.files.read_secret}.
    """

    field: str
    key: str | None
    file_key: str
    read: Callable[[str], Any] | None = None


class Conflict(Problem, frozen=True, kw_only=True):
    """
    A broken rule about several keys. It is not reported if one of them has a problem of its own,
    because then its intended value is unknown.

    @ivar others: the paths of the other keys that the rule looks at.
    """

    others: tuple[str, ...] = ()


class BuildContext(msgspec.Struct, frozen=True, kw_only=True):
    """
    What is available to a component when it is built.

    @ivar threads: makes a pool of up to N threads for the component alone, and returns a
        function that runs others in these threads. The pool starts and stops with the service.
    @ivar patient_threads: the same, for work on captures: it waits a while if no thread can be started.
    @ivar destination_threads: as C{threads}, with as many threads as the concurrent attempts of a
        destination need.
    @ivar wall_clock: the time in seconds since the Unix epoch.
    @ivar events: makes the events of the node.
    @ivar most_connections: how many connections a listener may have; L{None} is no limit.
    """

    settings: Settings
    reactor: Any
    threads: Callable[[int], RunInThread]
    patient_threads: Callable[[int], RunInThread]
    destination_threads: Callable[[], RunInThread]
    wall_clock: Callable[[], float]
    events: EventFactory
    most_connections: int | None = None


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """
    The keys of one component: its fields, whose types are kinds (see
    L{pcapsvc.settings.kinds}). A field whose key has another name gives that name as
    C{field(name=...)}.

    @cvar name: what the component is called in the log and in events.
    @cvar table: the path of the TOML table with the keys, such as C{redis} or
        C{reports.redis}. Sections may share a table. L{None} if there are no keys.
    @cvar secrets: the fields that hold a secret.
    @cvar options: the command line options that override keys of this section.
    @cvar only_if_given: whether the section exists only if its table is in the file.
    @cvar switch: the key that enables the component, if there is one.
    @cvar inherits: the table from which keys are taken that its own, if it is in the file, doesn't have.
    """

    name: ClassVar[str]
    table: ClassVar[str | None] = None
    secrets: ClassVar[tuple[SecretKeys, ...]] = ()
    options: ClassVar[tuple[Option, ...]] = ()
    only_if_given: ClassVar[bool] = False
    switch: ClassVar[str | None] = None
    inherits: ClassVar[str | None] = None

    @classmethod
    def file_keys(cls) -> tuple[str, ...]:
        """The keys that the file may have, in the order of their declaration."""
        by_option_only = {option.key for option in cls.options if option.only}
        secrets = {secret.field: secret for secret in cls.secrets}
        keys: list[str] = []
        for each in fields_by_key(cls).values():
            if each.name in secrets:
                secret = secrets[each.name]
                keys += [key for key in (secret.key, secret.file_key) if key is not None]
            elif each.encode_name not in by_option_only:
                keys.append(each.encode_name)
        return tuple(keys)

    @classmethod
    def key_path(cls, key: str) -> str:
        """The path of a key: C{general.maxpackets}."""
        return f"{cls.table}.{key}"

    @classmethod
    def inherited(cls, own: Mapping[str, Any], other: Mapping[str, Any]) -> Mapping[str, Any]:
        """
        What is taken from the table C{inherits}, by key, as far as this section's own table doesn't have it.

        @param own: the values of its own table, not yet validated. Likewise C{other}.
        """
        return {}

    @classmethod
    def dependent_defaults(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Defaults, by field, that depend on the given values of other fields."""
        return {}

    def is_enabled(self) -> bool:
        """Whether the component is to be built."""
        return True

    def directories(self) -> Iterator[tuple[str, str]]:
        """
        The directories that the component writes to, each with its key. Components must not
        share a directory.
        """
        return iter(())

    def problems(self, settings: Settings) -> Iterator[Problem]:
        """
        Check rules that concern several keys, of this section or of others.

        @return: a L{Conflict} for each broken rule.
        """
        return iter(())

    def uses_twisted_tls(self) -> bool:
        """
        Whether the component needs Twisted's TLS if it is enabled. If no component does, it is
        not imported, which saves 15 MB of memory. Python's C{ssl} is always available.
        """
        return False


class _ConnectedSection(Section, frozen=True, kw_only=True):
    """A section of a kind of which at least one must be enabled."""

    switch: ClassVar[str]

    def uses_twisted_tls(self) -> bool:
        """As in L{Section}. The default is the safe one."""
        return True


class SourceSection(_ConnectedSection, frozen=True, kw_only=True):
    """The settings of a source of requests."""

    switch: ClassVar[str] = "listen"

    def build(self, context: BuildContext, sink: IRequestSink) -> IRequestSource:
        """
        The source, not started.

        @raise pcapsvc.core.errors.SettingsError: if the settings turn out to be wrong only now.
        """
        raise NotImplementedError


class DestinationSection(_ConnectedSection, frozen=True, kw_only=True):
    """The settings of a destination of captures."""

    switch: ClassVar[str] = "upload"

    def compression(self) -> CompressionChoice:
        """How it wants its files. By default they are not compressed, unless a request says so."""
        return CompressionChoice()

    def option_fields(self) -> OptionFields | None:
        """The fields of a request that only this destination understands; L{None} if there are none."""
        return None

    def build(self, context: BuildContext) -> IDestination:
        """The destination, not started."""
        raise NotImplementedError


class ReporterSection(Section, frozen=True, kw_only=True):
    """The settings of a reporter of events."""

    def uses_twisted_tls(self) -> bool:
        """As in L{Section}. The default is the safe one."""
        return True

    def build(self, context: BuildContext) -> IReporter:
        """The reporter, not started. It may be a service."""
        raise NotImplementedError


class EncoderSection(Section, frozen=True, kw_only=True):
    """The settings of an encoder. C{[general] format}, or a request, chooses one by its name."""

    def build(self, context: BuildContext) -> IEncoder:
        """The encoder."""
        raise NotImplementedError


class ServiceSection(Section, frozen=True, kw_only=True):
    """The settings of a host service, such as syslog."""

    def build(self, context: BuildContext, node: Any) -> IService:
        """
        The service, not started. It starts before everything else, and stops last.

        @param node: the L{pcapsvc.app.Node} that it belongs to.
        """
        raise NotImplementedError
