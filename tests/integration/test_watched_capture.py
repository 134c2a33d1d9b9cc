"""A capture at a high rate that everybody watches."""

from __future__ import annotations

from playwright.sync_api import expect

from pcapsvc.web.event_stream import MOST_READERS
from peers.audience import Audience
from peers.daemon import Daemon
from tests.integration.page_case import PATIENCE, PageTestCase
from tests.integration.traffic import generate

expect.set_options(timeout=PATIENCE)

# Packets are lost if the daemon is not scheduled for long enough.
needs_machine_alone = True

_RATE = 300_000
_PACKETS = 4 * _RATE
# The page reads, too.
_READERS = MOST_READERS - 1
# How often to try, if the machine has no time for the daemon.
_ATTEMPTS = 3


class WatchedTests(PageTestCase):
    """The page is open, 50 clients read events, and Prometheus scrapes the metrics every second."""

    def test_none_lost(self) -> None:
        """All of that costs a capture at 300,000 packets a second not one packet, on the default ring."""
        wire = self.wire()
        daemon = Daemon(general="maxpackets = 2000000\nmaxbytes = 500000000")
        self.addCleanup(daemon.stop)
        daemon.start()
        page = self.visit(daemon).page
        expect(page.locator("#link-text")).to_have_text("Live")
        lost: list[tuple[int, int]] = []
        while len(lost) < _ATTEMPTS:
            capture = daemon.capture(interface=[wire.interface], bpf="udp", timeout=60, snap=128)
            expect(page.locator("#running .card")).to_have_count(1)
            audience = Audience(daemon.port, readers=_READERS)
            self.addCleanup(audience.stop)
            audience.start()
            generate(wire, _PACKETS, rate=_RATE)
            # Beside everybody who watches.
            state = daemon.read(capture)
            watched = audience.finish()
            self.assertEqual((watched.problems, len(watched.events)), ([], _READERS))
            self.assertGreater(min(watched.scrapes, *watched.events), 2)
            expect(page.locator("#running .card")).to_have_count(0)
            lost.append((_PACKETS - state["packets"], state["dropped"]))
            if lost[-1] == (0, 0):
                return
        self.fail(f"missing, and dropped by the kernel: {lost}")
