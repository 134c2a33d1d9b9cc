"""Captures get their share of the reactor, whatever else there is to do."""

from __future__ import annotations

import atexit
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from pcapsvc.capture.capturer import Capturer
from pcapsvc.core.plan import CapturePlan
from pcapsvc.core.request import CaptureRequest
from pcapsvc.core.session import CaptureLimits
from pcapsvc.packets.filter_compiler import FilterCompiler
from pcapsvc.packets.handle import libpcap_path
from pcapsvc.packets.pcapy_system import PcapySystem
from pcapsvc.threads import Threads
from pcapsvc.web.event_stream import MOST_READERS
from peers.audience import Audience
from peers.certificates import Authority
from peers.chromium import shared_chromium
from peers.daemon import Daemon
from peers.redis import RedisServer
from peers.tcpdump import Tcpdump
from peers.wire import Wire
from tests.integration.traffic import generate

reactor: Any = global_reactor

# Packets are lost if the daemon is not scheduled for long enough.
needs_machine_alone = True

_RATE = 100_000
_PACKETS = 150_000

# How many captures report their progress, too.
_OTHERS = 20
_OTHERS_ID = "others"
# How often to try, if the machine has no time for anybody.
_ATTEMPTS = 3


def _daemon(configuration: str = "", *, authority: Authority | None = None) -> Daemon:
    daemon = Daemon(configuration, general=f"maxpackets = {2 * _PACKETS}", authority=authority)
    atexit.register(daemon.stop)
    daemon.start()
    return daemon


@cache
def _shared_daemon() -> Daemon:
    """A daemon for all clients of HTTP without TLS. It drops what closed connections have left."""
    return _daemon()


@cache
def _watched_daemon() -> Daemon:
    """A daemon with more captures that report their progress."""
    daemon = _daemon("[reports]\nprogressinterval = 0.1\n")
    for _ in range(_OTHERS):
        limits = {"bytes": 1000, "duration": 3600, "timeout": 3600}
        daemon.capture(interface=["lo"], bpf="udp port 9", requestid=_OTHERS_ID, **limits)
    return daemon


class LongTurnTests(TestCase):
    """A capture of this process, on the default ring."""

    async def test_long_turns(self) -> None:
        """
        What arrives during a long turn of the reactor is read in the next one: at 100,000 packets a second,
        none are lost if each turn lasts 0.1 s.
        """
        wire, threads = Wire(), Threads(reactor)
        self.addCleanup(wire.stop)
        wire.start()
        compiler = FilterCompiler(reactor, libpcap_path())
        system = PcapySystem(
            compiler=compiler,
            run_in_thread=threads.run,
            buffer_size_bytes=8 << 20,
            read_timeout_ms=10,
            promiscuous=True,
        )
        capturer = Capturer(
            reactor, system, run_in_thread=threads.run, wall_clock=time.time, read_timeout_ms=10
        )
        for service in (threads, compiler, system):
            service.startService()
            self.addCleanup(service.stopService)
        limits = CaptureLimits(max_packets=_PACKETS, max_bytes=10**9, idle_seconds=2, duration_seconds=60)
        plan = CapturePlan(
            node="sensor1",
            interface=wire.interface,
            alias=None,
            bpf="udp",
            snap_length=128,
            limits=limits,
            request=CaptureRequest(node="any", interface=(wire.interface,)),
            options={},
            via="test",
        )
        capture = await capturer.prepare(plan)
        recording = capture.start()
        sending = threads.run(lambda: generate(wire, _PACKETS, rate=_RATE))
        while not sending.called:
            time.sleep(0.1)
            await deferLater(reactor, 0)
        await sending
        made = await recording
        made.content.close()
        assert made.counts is not None
        self.assertEqual((made.packets, made.counts.dropped), (_PACKETS, 0))


class CapturesFirstCase(SynchronousTestCase):
    """A daemon with the default ring, and a capture at 100,000 packets a second."""

    def setUp(self) -> None:
        """A wire."""
        self.wire = Wire()
        self.addCleanup(self.wire.stop)
        self.wire.start()

    def assert_none_lost(
        self, daemon: Daemon, load: str, *, port: int | None = None, least: int = 30
    ) -> None:
        """
        A capture has every packet beside clients of a process of their own.

        @param load: of L{LOADS}.
        @param port: which it connects to; by default, the daemon's.
        @param least: how often its clients get what they want, at least.
        """
        words = [sys.executable, "-m", "tests.integration.load_process", load]
        words += [str(daemon.port if port is None else port), str(least)]

        @contextmanager
        def clients() -> Iterator[None]:
            with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdin is not None
                assert process.stdout is not None
                try:
                    self.assertEqual(process.stdout.readline(), "ready\n")
                    yield
                finally:
                    # It ends with its standard input.
                    process.stdin.close()
                self.assertGreater(int(process.stdout.read()), least)

        self.assert_none_lost_beside(clients, daemon, load)

    def assert_none_lost_beside(
        self, clients: Callable[[], AbstractContextManager[object]], daemon: Daemon, load: str
    ) -> None:
        """
        A capture has every packet. If the machine had no time for the daemon, there are other attempts,
        beside tcpdump, which shows whether it was the machine.

        @param clients: keep the daemon busy.
        @param load: what they are, in words.
        """
        lost: list[tuple[int, int | None]] = []
        for attempt in range(_ATTEMPTS):
            tcpdump = self.tcpdump() if attempt else None
            capture = daemon.capture(interface=[self.wire.interface], bpf="udp", timeout=60, snap=128)
            with clients():
                generate(self.wire, _PACKETS, rate=_RATE)
            # Beside them, the daemon might close this connection to make room for theirs.
            packets = daemon.read(capture)["packets"]
            if packets == _PACKETS:
                return
            theirs = None
            if tcpdump is not None:
                tcpdump.catch_up()
                theirs = _PACKETS - len(tcpdump.finish())
            lost.append((_PACKETS - packets, theirs))
        self.fail(f"{load}: lost by the daemon, and by tcpdump: {lost}")

    def tcpdump(self) -> Tcpdump:
        """A tcpdump with a ring like the daemon's."""
        tcpdump = Tcpdump(self.wire.interface, snaplen=128, filter="udp", buffer_bytes=8 << 20)
        self.addCleanup(tcpdump.stop)
        tcpdump.start()
        return tcpdump


class CapturesFirstTests(CapturesFirstCase):
    """Clients that ask for much."""

    def test_large_bodies(self) -> None:
        """Sixteen connections post bodies of 60 KB."""
        self.assert_none_lost(_shared_daemon(), "large bodies")

    def test_costly_expressions(self) -> None:
        """Sixteen connections post regular expressions that would take long to compile."""
        self.assert_none_lost(_shared_daemon(), "costly expressions", least=100)

    def test_refused_over_http(self) -> None:
        """Up to 5,000 requests a second are posted, and refused."""
        self.assert_none_lost(_shared_daemon(), "refused over HTTP", least=100)

    def test_refused_by_redis(self) -> None:
        """5,000 requests a second are published, and refused."""
        redis = RedisServer()
        self.addCleanup(redis.stop)
        redis.start()
        # Its own: what was published is still judged when the load has ended.
        daemon = _daemon(f'[redis]\nlisten = true\nhost = "127.0.0.1"\nport = {redis.port}\n')
        self.addCleanup(daemon.stop)
        daemon.logged("subscribed")
        self.assert_none_lost(daemon, "refused by Redis", port=redis.port, least=3_400)

    def test_silent(self) -> None:
        """Two hundred connections say nothing, and are replaced by others."""
        self.assert_none_lost(_shared_daemon(), "silent", least=75)

    def test_tls(self) -> None:
        """Over TLS: silent connections, and handshakes that are given up in the middle."""
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        daemon = _daemon(authority=Authority(Path(directory.name)))
        self.addCleanup(daemon.stop)
        for load in ("silent", "handshakes"):
            self.assert_none_lost(daemon, load)


class WatchedTests(CapturesFirstCase):
    """A daemon that is watched, with 20 more captures that report their progress ten times a second."""

    @contextmanager
    def audience(self, daemon: Daemon, readers: int) -> Iterator[None]:
        """Readers of the events, and a scrape a second. All of them are served, and all captures last."""
        audience = Audience(daemon.port, readers=readers)
        try:
            audience.start()
            yield
            watched = audience.finish()
        finally:
            audience.stop()
        query = f"/captures?state=capturing&requestid={_OTHERS_ID}"
        self.assertEqual(len(daemon.request("GET", query)[1]["captures"]), _OTHERS)
        self.assertEqual(watched.problems, [])
        self.assertEqual(len(watched.events), readers)
        self.assertGreater(min(watched.events), _OTHERS)
        self.assertGreater(watched.scrapes, 1)

    def test_readers(self) -> None:
        """By 50 readers of its events, and a scrape a second."""
        daemon = _watched_daemon()
        self.assert_none_lost_beside(lambda: self.audience(daemon, MOST_READERS), daemon, "readers")

    def test_page(self) -> None:
        """By the page in a browser as well, which is one of the readers."""
        daemon = _watched_daemon()
        visitor = shared_chromium().visitor(viewport={"width": 1280, "height": 900})
        self.addCleanup(visitor.close)
        page = visitor.page
        page.goto(f"http://127.0.0.1:{daemon.port}/")
        page.locator("#link-text", has_text="Live").wait_for()
        self.assert_none_lost_beside(lambda: self.audience(daemon, MOST_READERS - 1), daemon, "the page")
