"""The metrics of a node: what is counted of events, and how it is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from pcapsvc import app
from pcapsvc.core.errors import Problem
from pcapsvc.core.event import (
    CaptureDelivered,
    CaptureDone,
    CaptureFailed,
    CaptureStopped,
    DeliveryFailed,
    DeliveryPostponed,
    DeliverySpooled,
    Payload,
    RequestAccepted,
    RequestBusy,
    RequestRejected,
)
from pcapsvc.core.history import HistoryBounds, HistoryState
from pcapsvc.core.kept_file import KeptFiles
from pcapsvc.core.labels import Labels
from pcapsvc.core.recording import PacketCounts, Progress
from pcapsvc.core.rolling import RollingPackets
from pcapsvc.core.session import StopReason
from pcapsvc.core.source_state import SourceState
from pcapsvc.destinations.local.destination import LocalDirectory
from pcapsvc.reports.metrics.lag import INTERVAL_SECONDS, ReactorLag
from pcapsvc.reports.metrics.prometheus import CollectorRegistry, ProcessCollector, generate_latest
from pcapsvc.reports.metrics.reporter import Metrics
from pcapsvc.reports.metrics.resource import MetricsResource
from pcapsvc.reports.metrics.state import NodeCollector
from pcapsvc.testing import (
    MemoryDestination,
    MemoryHistories,
    MemorySink,
    MemorySource,
    event_factory,
    run_now,
)
from pcapsvc.testing_packets import MemoryPacketSystem
from peers.requirement import require_command
from tests.unit.http_case import HTTPTestCase
from tests.unit.settings_case import LEAST, SettingsTestCase
from tests.unit.test_web_node import build

#: All that the issue names, with the labels of each.
SERIES: Mapping[str, tuple[str, ...]] = {
    "pcapsvc_requests_total": ("source", "verdict"),
    "pcapsvc_captures_running": (),
    "pcapsvc_captures_total": ("reason",),
    "pcapsvc_capture_packets_total": (),
    "pcapsvc_capture_bytes_total": (),
    "pcapsvc_packets_dropped_total": ("where",),
    "pcapsvc_delivery_attempts_total": ("destination", "outcome"),
    "pcapsvc_delivery_seconds_sum": ("destination",),
    "pcapsvc_delivery_seconds_count": ("destination",),
    "pcapsvc_delivery_seconds_bucket": ("destination", "le"),
    "pcapsvc_spool_entries": (),
    "pcapsvc_spool_bytes": (),
    "pcapsvc_spool_limit_bytes": (),
    "pcapsvc_kept_files": ("destination",),
    "pcapsvc_kept_bytes": ("destination",),
    "pcapsvc_removed_files_total": ("destination", "reason"),
    "pcapsvc_source_connected": ("source",),
    "pcapsvc_channel_connected": ("channel",),
    "pcapsvc_events_dropped_total": ("channel",),
    "pcapsvc_history_seconds": ("interface",),
    "pcapsvc_history_packets": ("interface",),
    "pcapsvc_history_bytes": ("interface",),
    "pcapsvc_history_dropped_total": ("interface",),
    "pcapsvc_history_recording": ("interface",),
    "pcapsvc_reactor_lag_seconds_sum": (),
    "pcapsvc_reactor_lag_seconds_count": (),
    "pcapsvc_reactor_lag_seconds_bucket": ("le",),
    "pcapsvc_build_info": ("python", "version"),
    "process_cpu_seconds_total": (),
    "process_resident_memory_bytes": (),
    "process_virtual_memory_bytes": (),
    "process_start_time_seconds": (),
    "process_open_fds": (),
    "process_max_fds": (),
}


def parse(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """The value of each series, by its name and its labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def stopped(packets: int, size: int, counts: PacketCounts | None = None, **more: Any) -> CaptureStopped:
    """A capture has stopped."""
    return CaptureStopped(
        **{"reason": StopReason.PACKETS, "file": "a.pcap", **more}, packets=packets, bytes=size, counts=counts
    )


def _retention() -> Any:
    """What removes captures."""
    kept = KeptFiles(files=4, bytes=900, removed={"size": 3, "age": 0})
    return SimpleNamespace(kept=lambda: kept)


class MetricsCase(SynchronousTestCase):
    """The metrics of a node with two sources, two destinations, a channel and a spool."""

    def setUp(self) -> None:
        """They have all their series."""
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry, sources=["redis", "http"], destinations=["local", "s3"])
        self.factory = event_factory()
        channel = SimpleNamespace(dropped=7, state=lambda: SourceState(connected=True, since=0.0))
        redis, http = MemorySource(MemorySink(), name="redis"), MemorySource(MemorySink(), name="http")
        redis.connect()
        local = LocalDirectory(directory="/", run_in_thread=run_now, retention=_retention())
        self.node = SimpleNamespace(
            captures=SimpleNamespace(running={"a": None, "b": None}),
            spool=SimpleNamespace(entries=3, size=4096, max_bytes=1 << 30),
            sources={"redis": redis, "http": http},
            channels={"kafka": channel},
            destinations={"local": local, "s3": MemoryDestination("s3")},
            histories=MemoryHistories(
                HistoryState(
                    interface="eth0",
                    bounds=HistoryBounds(seconds=60, size_bytes=1 << 26, snap_length=128),
                    since=1_700_000_000.0,
                    seconds=42.5,
                    packets=7,
                    bytes=900,
                    dropped=3,
                    problem=None,
                )
            ),
        )
        self.registry.register(NodeCollector(self.node))
        ProcessCollector(registry=self.registry)

    def report(self, data: Payload, subject: str = "abc1", *, via: str = "redis") -> None:
        """Something happens."""
        labels, about = Labels(via=via, interface="eth0"), subject
        if isinstance(data, RequestAccepted | RequestRejected | RequestBusy):
            labels, about = Labels(via=via), None
        self.metrics.report(self.factory.event(data, labels, about))

    def text(self) -> str:
        """All metrics."""
        return generate_latest(self.registry).decode()

    def value(self, name: str, **labels: str) -> float:
        """The value of a series."""
        return parse(self.text())[f"pcapsvc_{name}", tuple(sorted(labels.items()))]


class SeriesTests(MetricsCase):
    """Which series there are."""

    def test_names(self) -> None:
        """Exactly those that are documented, with their labels; the event of each is counted from 0."""
        found: dict[str, set[tuple[str, ...]]] = {}
        for name, labels in parse(self.text()):
            found.setdefault(name, set()).add(tuple(key for key, _ in labels))
        self.assertEqual(found, {name: {labels} for name, labels in SERIES.items()})

    def test_values_of_labels(self) -> None:
        """The values of labels are known beforehand: nothing that is reported adds a series."""
        before = set(parse(self.text()))
        for via in ("redis", "http", "unknown"):
            self.report(RequestBusy(reason="full"), via=via)
        for destination in ("s3", "unknown"):
            self.report(DeliveryFailed(destination=destination, problem="refused"))
            self.report(CaptureDelivered(destination=destination, location="x", seconds=1))
        for number in range(20):
            self.report(stopped(1, 40), subject=f"id{number}")
            self.metrics.progressed(f"on{number}", Progress(packets=1, bytes=1, seconds=1, dropped=1))
        self.assertEqual(set(parse(self.text())), before)
        self.assertIn(("pcapsvc_captures_total", (("reason", "device_lost"),)), before)
        self.assertIn(
            ("pcapsvc_requests_total", (("source", "http"), ("verdict", "rejected"))),
            before,
        )

    def test_conventions(self) -> None:
        """Counters end in _total, and are the only ones; units are base units; each has a text."""
        for family in text_string_to_metric_families(self.text()):
            name = family.name + ("_total" if family.type == "counter" else "")
            self.assertIn(f"# TYPE {name} {family.type}\n", self.text())
            self.assertRegex(name, r"\A(pcapsvc|process)(_[a-z]+)+\Z")
            self.assertNotRegex(family.name, r"total|count|_(milli|micro|kilo|mega|minutes|hours|percent)")
            self.assertTrue(family.documentation.endswith("."), family)
            for sample in family.samples:
                self.assertFalse({"id", "requestid", "capture"} & set(sample.labels))
                # An interface with a history is configured; those that requests name need not be.
                self.assertEqual("interface" in sample.labels, sample.name.startswith("pcapsvc_history_"))
                self.assertFalse(sample.name.endswith("_created"))

    def test_promtool(self) -> None:
        """Prometheus' own tool finds nothing either."""
        promtool = require_command("promtool", "prometheus")
        run = subprocess.run(
            [promtool, "check", "metrics"], input=self.text(), capture_output=True, text=True, timeout=60
        )
        self.assertEqual((run.returncode, run.stdout, run.stderr), (0, "", ""))

    def test_registry(self) -> None:
        """Nothing is in the library's own registry that it doesn't put there itself."""
        from prometheus_client import REGISTRY

        self.assertNotIn("pcapsvc_", generate_latest(REGISTRY).decode())

    def test_light(self) -> None:
        """What the library would load for what isn't used here isn't loaded, and may be later."""
        code = (
            "import sys; from pcapsvc.reports.metrics import prometheus;"
            "assert 'prometheus_client' in sys.modules;"
            "assert not {'snappy', 'cramjam', 'http.server', 'socketserver', 'wsgiref'} & {*sys.modules};"
            "import snappy, http.server, wsgiref.simple_server as wsgi;"
            "assert issubclass(wsgi.WSGIServer, http.server.HTTPServer)"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class CountingTests(MetricsCase):
    """What is counted."""

    def test_kept(self) -> None:
        """What a directory keeps, and what was removed from it."""
        self.assertEqual(self.value("kept_files", destination="local"), 4)
        self.assertEqual(self.value("kept_bytes", destination="local"), 900)
        for reason, number in (("size", 3), ("age", 0)):
            value = self.value("removed_files_total", destination="local", reason=reason)
            self.assertEqual(value, number)

    def test_requests(self) -> None:
        """Requests by source and verdict."""
        self.report(RequestAccepted(captures=()))
        self.report(RequestAccepted(captures=()), via="http")
        self.report(RequestAccepted(captures=()), via="http")
        self.report(RequestRejected(problems=(Problem(path="bpf", rule="is wrong"),)))
        self.report(RequestBusy(reason="full"))
        for source, verdict, count in (
            ("redis", "accepted", 1),
            ("http", "accepted", 2),
            ("redis", "rejected", 1),
            ("redis", "busy", 1),
            ("http", "busy", 0),
        ):
            self.assertEqual(self.value("requests_total", source=source, verdict=verdict), count)

    def test_captures(self) -> None:
        """Captures by the reason of their end, and those without a file."""
        for reason in (StopReason.BYTES, StopReason.BYTES, StopReason.DEVICE_LOST):
            self.report(stopped(1, 40, reason=reason))
            self.report(CaptureDone())
        self.report(CaptureFailed(problem="no"))
        for reason, count in (("bytes", 2), ("device_lost", 1), ("failed", 1), ("idle", 0)):
            self.assertEqual(self.value("captures_total", reason=reason), count)

    def totals(self) -> tuple[float, ...]:
        """The packets and bytes, and the packets that were dropped."""
        return (
            self.value("capture_packets_total"),
            self.value("capture_bytes_total"),
            self.value("packets_dropped_total", where="kernel"),
            self.value("packets_dropped_total", where="interface"),
        )

    def test_packets(self) -> None:
        """Packets and bytes are counted while a capture runs, and each once."""
        self.metrics.progressed("one", Progress(packets=10, bytes=1000, seconds=1, dropped=2))
        self.metrics.progressed("two", Progress(packets=1, bytes=100, seconds=1, dropped=None))
        self.assertEqual(self.totals(), (11, 1100, 2, 0))
        # What is known of a capture that runs may be less than before, and a counter must never be.
        self.metrics.progressed("one", Progress(packets=9, bytes=900, seconds=2, dropped=2))
        self.metrics.progressed("one", Progress(packets=15, bytes=1500, seconds=2, dropped=2))
        self.assertEqual(self.totals(), (16, 1600, 2, 0))
        counts = PacketCounts(received=23, dropped=3, interface_dropped=5)
        self.report(stopped(20, 2000, counts), subject="one")
        self.report(stopped(1, 140), subject="two")
        self.assertEqual(self.totals(), (21, 2140, 3, 5))

    def test_rolling(self) -> None:
        """What a rolling capture has released was captured as well."""
        held = RollingPackets(captured=10, captured_bytes=1000, released=6)
        self.metrics.progressed("one", Progress(packets=4, bytes=400, seconds=1, rolling=held))
        self.assertEqual(self.totals(), (10, 1000, 0, 0))
        held = RollingPackets(captured=20, captured_bytes=2000, released=17)
        self.report(stopped(3, 300, rolling=held), subject="one")
        self.assertEqual(self.totals(), (20, 2000, 0, 0))

    def test_stopped_at_once(self) -> None:
        """A capture that nobody looked at while it ran is counted as well; the next one anew."""
        for _ in range(2):
            counts = PacketCounts(received=23, dropped=3, interface_dropped=None)
            self.report(stopped(20, 2000, counts))
        self.assertEqual(self.totals(), (40, 4000, 6, 0))

    def test_failed(self) -> None:
        """What was counted of a capture that fails stays counted, and is not held."""
        self.metrics.progressed("one", Progress(packets=10, bytes=1000, seconds=1))
        self.report(CaptureFailed(problem="no"), subject="one")
        self.metrics.progressed("one", Progress(packets=1, bytes=10, seconds=1))
        self.assertEqual(self.totals(), (11, 1010, 0, 0))

    def test_deliveries(self) -> None:
        """Attempts by destination and outcome, and how long those took that succeeded."""
        self.report(CaptureDelivered(destination="s3", location="x", seconds=0.2))
        self.report(CaptureDelivered(destination="s3", location="x", seconds=7))
        self.report(DeliveryPostponed(destination="s3", problem="x", attempts=1, next_try=0))
        self.report(DeliverySpooled(destination="s3", problem="x"))
        self.report(DeliveryFailed(destination="local", problem="x"))
        for destination, outcome, count in (
            ("s3", "delivered", 2),
            ("s3", "postponed", 1),
            ("s3", "spooled", 1),
            ("s3", "failed", 0),
            ("local", "failed", 1),
        ):
            found = self.value("delivery_attempts_total", destination=destination, outcome=outcome)
            self.assertEqual(found, count)
        self.assertAlmostEqual(self.value("delivery_seconds_sum", destination="s3"), 7.2)
        for bound, count in (("0.1", 0), ("0.25", 1), ("5.0", 1), ("10.0", 2), ("+Inf", 2)):
            self.assertEqual(self.value("delivery_seconds_bucket", destination="s3", le=bound), count)

    def test_gauges(self) -> None:
        """How the node is, at the moment at which it is asked for."""
        self.assertEqual(self.value("captures_running"), 2)
        self.node.captures.running.clear()
        self.assertEqual(self.value("captures_running"), 0)
        for name, value in (("entries", 3), ("bytes", 4096), ("limit_bytes", 1 << 30)):
            self.assertEqual(self.value(f"spool_{name}"), value)
        self.assertEqual(self.value("source_connected", source="redis"), 1)
        self.assertEqual(self.value("source_connected", source="http"), 0)
        for state, value in (({"connected": True}, 1), ({}, 1), ({"problem": "refused"}, 0)):
            self.node.channels["kafka"].state = lambda state=state: SourceState(**state)
            self.assertEqual(self.value("channel_connected", channel="kafka"), value)
        self.assertEqual(self.value("events_dropped_total", channel="kafka"), 7)
        self.node.spool = None
        for name in ("spool_entries", "spool_bytes", "spool_limit_bytes"):
            self.assertEqual(self.value(name), 0)

    def test_histories(self) -> None:
        """How far back each history reaches, and whether it is going on."""
        expected = {"seconds": 42.5, "packets": 7, "bytes": 900, "dropped_total": 3, "recording": 1}
        for name, value in expected.items():
            self.assertEqual(self.value(f"history_{name}", interface="eth0"), value)
        histories = self.node.histories
        histories.known = tuple(replace(state, problem="it is down") for state in histories.known)
        self.assertEqual(self.value("history_recording", interface="eth0"), 0)
        histories.known = ()
        self.assertNotIn("pcapsvc_history_seconds{", self.text())


class NodeTests(HTTPTestCase, SettingsTestCase):
    """The metrics of a node."""

    def test_node(self) -> None:
        """They are those of its own parts, and count what it reports."""
        node = build(self, "[reports.redis]\nsend = true")
        events = event_factory()
        node.reporter.report(events.event(RequestBusy(reason="full"), Labels(via="redis")))
        node.reporter.report(
            events.event(
                DeliveryFailed(destination="local", problem="x"),
                Labels(via="redis", interface="eth0"),
                "abc1",
            )
        )
        resource = node.sources["http"].root.getStaticEntity(b"metrics")
        answer = self.successResultOf(Deferred.fromCoroutine(resource.render_GET(None)))
        found = parse(answer.body.decode())
        for name, labels, value in (
            ("requests_total", {"source": "redis", "verdict": "busy"}, 1),
            ("requests_total", {"source": "http", "verdict": "busy"}, 0),
            ("delivery_attempts_total", {"destination": "local", "outcome": "failed"}, 1),
            ("source_connected", {"source": "redis"}, 0),
            ("events_dropped_total", {"channel": "redis"}, 0),
            ("captures_running", {}, 0),
        ):
            self.assertEqual(found[f"pcapsvc_{name}", tuple(sorted(labels.items()))], value, name)

    def test_without_http(self) -> None:
        """Without HTTP nobody could read them, so nothing is counted."""
        settings = self.load(LEAST)
        with patch.dict(sys.modules, {"prometheus_client": None, "pcapsvc.reports.metrics.prometheus": None}):
            node = app.build(settings, MemoryReactorClock(), system=MemoryPacketSystem("mem0"))
        self.assertNotIn("http", node.sources)


class LagTests(MetricsCase):
    """How late the reactor is."""

    def test_measured(self) -> None:
        """It is measured at intervals, until the end."""
        clock = Clock()
        lag = ReactorLag(clock, self.metrics.lagged)
        lag.startService()
        clock.advance(INTERVAL_SECONDS)
        clock.advance(INTERVAL_SECONDS + 0.03)
        clock.advance(INTERVAL_SECONDS + 0.3)
        for bound, count in (("0.001", 1), ("0.025", 1), ("0.05", 2), ("0.25", 2), ("0.5", 3)):
            self.assertEqual(self.value("reactor_lag_seconds_bucket", le=bound), count)
        self.assertAlmostEqual(self.value("reactor_lag_seconds_sum"), 0.33)
        lag.stopService()
        self.assertEqual(clock.getDelayedCalls(), [])


class Running:
    """
    A capture that runs.

    @ivar seconds: how long it takes to ask for its progress.
    @ivar asked: how often it was asked for it.
    """

    def __init__(self, clock: Clock, seconds: float = 0.0, problem: Exception | None = None) -> None:
        self.clock = clock
        self.seconds = seconds
        self.problem = problem
        self.asked = 0

    def progress(self) -> Progress:
        """Ten packets."""
        self.asked += 1
        self.clock.rightNow += self.seconds
        if self.problem is not None:
            raise self.problem
        return Progress(packets=10, bytes=1000, seconds=1)


class ResourceTests(HTTPTestCase):
    """C{/metrics}."""

    def setUp(self) -> None:
        """Metrics of captures that a test gives."""
        super().setUp()
        self.running: dict[str, Running] = {}
        registry = CollectorRegistry()
        self.metrics = Metrics(registry, sources=["http"], destinations=["local"])
        captures: Any = SimpleNamespace(running=self.running)
        self.resource = MetricsResource(self.clock, registry, self.metrics, captures)
        self.source.root.putChild(b"metrics", self.resource)

    def scrape(self) -> Any:
        """The answer, once it is there."""
        return Deferred.fromCoroutine(self.resource.render_GET(None))

    def packets(self, answer: Any) -> float:
        """How many packets there are."""
        return parse(answer.body.decode())["pcapsvc_capture_packets_total", ()]

    def test_answer(self) -> None:
        """It is text in the format that Prometheus asks for."""
        transport = self.say(b"GET /metrics HTTP/1.0\r\n\r\n")
        head, _, body = transport.value().partition(b"\r\n\r\n")
        self.assertIn(b"\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n", head)
        self.assertIn(("pcapsvc_capture_packets_total", ()), parse(body.decode()))
        self.assertIn(b" 200 OK\r\n", self.say(b"HEAD /metrics HTTP/1.0\r\n\r\n").value())

    def test_many_captures(self) -> None:
        """Running captures are counted a few at a time, whatever becomes of them meanwhile."""
        self.running.update({f"id{number}": Running(self.clock, 0.0004) for number in range(10)})
        scraped = self.scrape()
        self.assertNoResult(scraped)
        self.assertEqual(sum(each.asked for each in self.running.values()), 3)
        del self.running["id9"]
        self.clock.advance(0)
        self.assertEqual(self.packets(self.successResultOf(scraped)), 90)

    def test_often(self) -> None:
        """Who asks more often than every half second gets the last answer."""
        first = self.successResultOf(self.scrape())
        self.running["id"] = Running(self.clock)
        self.assertIs(self.successResultOf(self.scrape()).body, first.body)
        self.clock.advance(0.6)
        self.assertEqual(self.packets(self.successResultOf(self.scrape())), 10)

    def test_unknown_progress(self) -> None:
        """A capture whose progress can't be found out doesn't hide the others."""
        self.running["bad"] = Running(self.clock, problem=ValueError("pcap is closed"))
        self.running["good"] = Running(self.clock)
        self.assertEqual(self.packets(self.successResultOf(self.scrape())), 10)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
