"""The one list of components: what is added there, and nowhere else, is a part of the daemon."""

from __future__ import annotations

import typing
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import field
from msgspec.structs import replace
from twisted.application.service import Service
from twisted.internet import reactor, task
from twisted.internet.defer import Deferred, succeed
from twisted.trial import unittest
from zope.interface import implementer

from pcapsvc import app
from pcapsvc.components import COMPONENTS
from pcapsvc.core.event import CaptureDelivered, CaptureStarted
from pcapsvc.core.recording import Content, Recording
from pcapsvc.core.result import Accepted
from pcapsvc.interfaces.delivery import IEncoder
from pcapsvc.interfaces.reports import IReporter
from pcapsvc.interfaces.requests import IRequestSink, IRequestSource
from pcapsvc.settings import Catalogue, Secret, Settings
from pcapsvc.settings.kinds import Flag, Host, Line, Port, converted, whole_number
from pcapsvc.settings.section import (
    BuildContext,
    Conflict,
    DestinationSection,
    EncoderSection,
    Option,
    ReporterSection,
    SecretKeys,
    SourceSection,
)
from pcapsvc.testing import MemoryDestination, MemoryReporter, MemorySource
from pcapsvc.testing_packets import MemoryPacketSystem
from tests.unit.documents import DOCUMENTATION, EXAMPLE, missing_from_example, undocumented
from tests.unit.settings_case import SettingsTestCase

#: What started and stopped, in order.
calls: list[str] = []


class Recorder(Service):
    """Records when it is started and stopped."""

    def startService(self) -> None:
        """It starts."""
        super().startService()
        calls.append(f"start {self.name}")

    def stopService(self) -> None:
        """It stops."""
        super().stopService()
        calls.append(f"stop {self.name}")


class ProbeSource(Recorder, MemorySource):
    """A source to which a test gives the messages."""

    def __init__(self, sink: IRequestSink) -> None:
        super().__init__(sink, name="probe-source")


class ProbeDestination(MemoryDestination, Recorder):
    """A destination that is a service."""

    def __init__(self) -> None:
        super().__init__("probe-destination")


@implementer(IReporter)
class ProbeReporter(MemoryReporter, Recorder):
    """A reporter that is a service."""

    name = "probe-reporter"


@implementer(IEncoder)
class ProbeEncoder(Recorder):
    """An encoder that is a service, and changes only the file's name."""

    name = "probe"
    suffix = ".probe"
    media_type = "application/x-probe"

    def encode(self, recording: Recording) -> Deferred[Content]:
        """See L{IEncoder.encode}."""
        return succeed(recording.content)


class SourceSettings(SourceSection, frozen=True, kw_only=True):
    """A source with a secret, a rule, a conversion and an option, in a nested table."""

    name: ClassVar[str] = "probe-source"
    table: ClassVar[str | None] = "probe.source"
    secrets: ClassVar[tuple[SecretKeys, ...]] = (
        SecretKeys(field="password", key="password", file_key="passwordfile"),
    )
    options: ClassVar[tuple[Option, ...]] = (
        Option(name="probehost", key="host", kind="text", implies="listen", help="Host to probe."),
    )

    listen: Flag = False
    host: Host = "localhost"
    path: Annotated[Line, converted(str.upper)] | None = None
    password: Secret | None = None

    def is_enabled(self) -> bool:
        """Whether it listens."""
        return self.listen

    def problems(self, settings: Settings) -> Any:
        """A path needs a password."""
        if self.path is not None and self.password is None:
            yield Conflict(
                path="probe.source.path",
                others=("probe.source.password",),
                rule="needs probe.source.password",
            )

    def build(self, context: BuildContext, sink: IRequestSink) -> IRequestSource:
        """The source."""
        return ProbeSource(sink)


class DestinationSettings(DestinationSection, frozen=True, kw_only=True):
    """A destination whose keys are in a table inside another's."""

    name: ClassVar[str] = "probe-destination"
    table: ClassVar[str | None] = "probe.source.copy"
    secrets: ClassVar[tuple[SecretKeys, ...]] = (
        SecretKeys(field="token", key="token", file_key="tokenfile"),
    )

    upload: Flag = False
    token: Secret | None = None

    def is_enabled(self) -> bool:
        """Whether captures are uploaded."""
        return self.upload

    def build(self, context: BuildContext) -> Any:
        """The destination."""
        return ProbeDestination()


class ReporterSettings(ReporterSection, frozen=True, kw_only=True):
    """A reporter in a nested table whose last name is another table's."""

    name: ClassVar[str] = "probe-reporter"
    table: ClassVar[str | None] = "reports.probe"
    secrets: ClassVar[tuple[SecretKeys, ...]] = (SecretKeys(field="auth", key="auth", file_key="authfile"),)

    report: Flag = False
    port: Port = 1
    auth: Secret | None = None

    def is_enabled(self) -> bool:
        """Whether events are reported."""
        return self.report

    def build(self, context: BuildContext) -> Any:
        """The reporter."""
        return ProbeReporter()


class EncoderSettings(EncoderSection, frozen=True, kw_only=True):
    """An encoder whose key is in C{[general]}."""

    name: ClassVar[str] = "probe"
    table: ClassVar[str | None] = "general"

    level: Annotated[int, whole_number(1, 9)] = field(name="probelevel", default=5)

    def build(self, context: BuildContext) -> Any:
        """The encoder."""
        return ProbeEncoder()


#: The list, with what exists only here.
WITH_PROBES = replace(
    COMPONENTS,
    sources=(*COMPONENTS.sources, SourceSettings),
    destinations=(*COMPONENTS.destinations, DestinationSettings),
    reporters=(*COMPONENTS.reporters, ReporterSettings),
    encoders=(*COMPONENTS.encoders, EncoderSettings),
)

PROBES = """
[general]
format = "probe"
nodename = "sensor1"
[probe.source]
listen = true
password = "hunter2"
[probe.source.copy]
upload = true
token = "hunter3"
[reports.probe]
report = true
auth = "hunter4"
"""

KEYS = [
    "probe.source.copy.upload",
    "probe.source.copy.token",
    "probe.source.copy.tokenfile",
    "probe.source.listen",
    "probe.source.host",
    "probe.source.path",
    "probe.source.password",
    "probe.source.passwordfile",
    "reports.probe.report",
    "reports.probe.port",
    "reports.probe.auth",
    "reports.probe.authfile",
    "general.probelevel",
]


class SettingsOfProbesTests(SettingsTestCase):
    """What is in the list is configured as everything else."""

    components = WITH_PROBES

    def test_read(self) -> None:
        """Their tables are read, also nested ones, and those that are shared; conversions are applied."""
        settings = self.load(PROBES.replace("listen = true", "listen = true\npath = 'a'"))
        self.assertEqual("A", settings.section(SourceSettings).path)
        self.assertEqual(Secret("hunter2"), settings.section(SourceSettings).password)
        self.assertEqual(Secret("hunter3"), settings.section(DestinationSettings).token)
        self.assertEqual(Secret("hunter4"), settings.section(ReporterSettings).auth)
        self.assertEqual(5, settings.section(EncoderSettings).level)
        self.assertEqual("probe", settings.general.format)

    def test_problems(self) -> None:
        """Their problems are reported together with all others."""
        self.assertEqual(
            [
                "general.maxpakets: is not a known key; did you mean 'maxpackets'?",
                "probe.source.copy.uplaod: is not a known key; did you mean 'upload'?",
                "probe.sorce: is not a known key; did you mean 'source'?",
                "reports.other: is not a known key",
                "general.maxbytes = 0: must be a whole number of bytes, from 1 to 9223372036854775807",
                '--probehost = "a b": must be a host name or address, without spaces or slashes',
                'reports.probe.port = "x": must be a whole number from 1 to 65535',
                "general.probelevel = 10: must be a whole number from 1 to 9",
                "general.writelocal: at least one destination must be enabled: general.writelocal, "
                "cloudshark.upload, s3.upload, puturl.allow, sftp.upload, webhook.upload or "
                "probe.source.copy.upload",
                'general.format = "prob": must be one of pcap, pcapng, probe',
                "probe.source.path: needs probe.source.password",
            ],
            self.problems(
                """
                [general]
                format = "prob"
                maxpakets = 1
                maxbytes = 0
                probelevel = 10
                [probe.source]
                path = "a"
                [probe.source.copy]
                uplaod = true
                [probe.sorce]
                [reports.probe]
                port = "x"
                [reports.other]
                """,
                probehost="a b",
            ),
        )

    def test_rules_of_wrong_values(self) -> None:
        """A rule that looks at a value that is wrong in itself, or is in a table that is, is passed over."""
        self.assertEqual(
            "probe.source.password: must be one line of text",
            self.only_problem(PROBES.replace('password = "hunter2"', "path = 'a'\npassword = 5")),
        )
        self.assertEqual(
            ["probe: must be a section, [probe]"],
            self.problems("probe = 3\n[redis]\nlisten = true"),
        )

    def test_a_quoted_dot(self) -> None:
        """A key with a dot in it isn't a nested table."""
        self.assertEqual(
            "reports.probe: is not a known key; did you mean 'reports'?",
            self.only_problem(PROBES + '[redis]\n["reports.probe"]'),
        )

    def test_options(self) -> None:
        """Their options override their keys, and are on the command line."""
        text = PROBES.replace("listen = true", "")
        source = self.section(SourceSettings, text, probehost="h")
        self.assertEqual(("h", True), (source.host, source.listen))

    def test_secrets(self) -> None:
        """Their secrets are in no text of the settings, and in no problem."""
        settings = self.load(PROBES)
        for text in (repr(settings), str(settings), repr(settings.sections)):
            self.assertNotIn("hunter", text)
        for wrong in ('"hunter2\\n"', '["hunter2"]', '"hunter2"\npasswordfile = "/nowhere"'):
            problem = self.only_problem(PROBES.replace('"hunter2"', wrong))
            self.assertTrue(problem.startswith("probe.source.password"), problem)
            self.assertNotIn("hunter", problem)

    def test_documents(self) -> None:
        """Each of their keys, and their option, must be documented, and be in the full example."""
        missing = [*undocumented(WITH_PROBES, DOCUMENTATION.read_text())]
        for path in KEYS:
            self.assertIn(f"{path}: no row", missing)
        for problem in ("--probehost: no row", "at least one source: other keys"):
            self.assertIn(problem, missing)
        self.assertEqual(len(KEYS) + 3, len(missing), missing)
        lines = [*missing_from_example(WITH_PROBES, EXAMPLE.read_text())]
        self.assertEqual(sorted(f"{path}: no line" for path in KEYS), sorted(lines))
        text = (
            EXAMPLE.read_text()
            + "\n#[reports.probe]\n#report = false\n#port   = 1\n#auth = ''\n#authfile = ''\n"
        )
        self.assertEqual(len(KEYS) - 4, len([*missing_from_example(WITH_PROBES, text)]))

    def test_no_two_of_a_key(self) -> None:
        """Two sections with one key, or one option, are a mistake of the list."""

        class Again(SourceSettings, frozen=True, kw_only=True):
            name: ClassVar[str] = "again"
            table: ClassVar[str | None] = "again"

        for more, what in ((SourceSettings, "probe.source.host"), (Again, "probehost")):
            error = self.assertRaises(ValueError, replace, WITH_PROBES, sources=(*WITH_PROBES.sources, more))
            self.assertIn(what, str(error))


class NodeOfProbesTests(unittest.TestCase):
    """What is in the list is built, started and stopped as everything else."""

    async def test_a_capture(self) -> None:
        """
        A request from the source makes a capture, which goes through the encoder to the destination,
        and events to the reporter. The source stops first; the others when there is nothing left for
        them to do.
        """
        calls.clear()
        case = SettingsTestCase()
        case.components = WITH_PROBES
        system = MemoryPacketSystem("mem0")
        self.patch(app, "DescriptorLimit", Service)
        node = app.build(case.load(PROBES), reactor, system=system)
        source: Any = node.sources["probe-source"]
        destination: Any = node.destinations["probe-destination"]
        reporter: Any = node.reporters["probe-reporter"]
        self.assertIs(node.encoders[node.settings.general.format].__class__, ProbeEncoder)
        node.service.privilegedStartService()
        node.service.startService()
        try:
            verdict = await source.receive(b'{"node": "sensor1", "interface": ["mem0"], "packets": 1}')
            self.assertIsInstance(verdict, Accepted)
            system.deliver("mem0", b"packet")
            for _ in range(500):
                if CaptureDelivered in map(type, reporter.data):
                    break
                await task.deferLater(reactor, 0.01)
        finally:
            await node.service.stopService()
        [name] = destination.files
        self.assertTrue(name.endswith(".probe"), name)
        self.assertIn(CaptureStarted, map(type, reporter.data))
        others = ["probe", "probe-destination", "probe-reporter"]
        self.assertEqual([f"start {name}" for name in [*others, "probe-source"]], calls[:4])
        self.assertEqual("stop probe-source", calls[4])
        self.assertEqual(sorted(f"stop {name}" for name in others), sorted(calls[5:]))


def may_hold_secret(kind: Any) -> bool:
    """Whether a value of a type can be a secret, or contain one."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return any(may_hold_secret(each.type) for each in msgspec.structs.fields(kind))
    return kind is Secret or any(map(may_hold_secret, typing.get_args(kind)))


class CatalogueTests(unittest.SynchronousTestCase):
    """What must be true of each section in the list."""

    def test_secrets_are_declared(self) -> None:
        """A field that can hold a secret is declared as one: otherwise its value would be shown."""
        for section in COMPONENTS.sections:
            declared = {secret.field for secret in section.secrets}
            fields = {each.name for each in msgspec.structs.fields(section) if may_hold_secret(each.type)}
            self.assertEqual(declared, fields, section.__name__)

    def test_names(self) -> None:
        """No two components of a kind have one name, and each that must be enabled has its switch."""
        for kinds in (COMPONENTS.sources, COMPONENTS.destinations, COMPONENTS.reporters, COMPONENTS.encoders):
            names = [kind.name for kind in kinds]
            self.assertEqual(sorted(set(names)), sorted(names))
        for kind in (*COMPONENTS.sources, *COMPONENTS.destinations):
            self.assertIn(kind.switch, kind.file_keys())

    def test_immutable(self) -> None:
        """Neither the settings nor a section can be changed."""
        settings = Settings(sections=(SourceSettings(),))
        self.assertRaises(AttributeError, setattr, settings, "sections", ())
        self.assertRaises(AttributeError, setattr, settings.section(SourceSettings), "listen", True)

    def test_no_section(self) -> None:
        """Asking for a missing section is an error, or returns L{None}, depending on the method."""
        settings = Settings(sections=())
        self.assertIsNone(settings.find(SourceSettings))
        self.assertRaises(LookupError, settings.section, SourceSettings)
        self.assertRaises(LookupError, settings.named, "probe")
        self.assertIsInstance(COMPONENTS, Catalogue)
