"""The web page in a real Chromium: start, watch, end and download captures; hostile text; tokens; outages."""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect

from peers.daemon import Daemon
from peers.tcpdump import read_packets, tshark_complaint
from peers.wire import Wire
from tests.integration.page_case import HOSTILE, PATIENCE, PageTestCase, send, toml_list

expect.set_options(timeout=PATIENCE)

# Captures that report their progress ten times a second: 200 events a second on a busy machine, too.
OTHERS = 30


class EventCounter:
    """Reads the events of a daemon beside the page, and counts them."""

    def __init__(self, daemon: Daemon) -> None:
        self.events = 0
        self._connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
        self._connection.request("GET", "/events")
        self._answer = self._connection.getresponse()
        assert self._answer.status == 200, self._answer.status
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Disconnect."""
        if self._connection.sock is not None:
            self._connection.sock.shutdown(2)
        self._thread.join(10)
        self._connection.close()

    def a_second(self, seconds: float) -> float:
        """How many events come in a second, measured for a while."""
        before, began = self.events, time.monotonic()
        time.sleep(seconds)
        return (self.events - before) / (time.monotonic() - began)

    def _read(self) -> None:
        try:
            while line := self._answer.readline():
                self.events += line.startswith(b"data:")
        except (OSError, http.client.HTTPException):
            pass


class CaptureTests(PageTestCase):
    """What the page is for."""

    def test_many_captures(self) -> None:
        """
        While 20 captures run and 200 events a second arrive, somebody starts a capture from the page, sees
        its progress, ends it, downloads it, and tshark reads it.
        """
        wire = self.wire()
        daemon = self.daemon()
        for _ in range(OTHERS):
            daemon.capture(interface=["lo"], bpf="udp port 9", duration=300, timeout=300)
        page = self.visit(daemon).page
        expect(page.locator("#link-text")).to_have_text("Live")
        expect(page.locator("#running .card")).to_have_count(OTHERS)
        counter = EventCounter(daemon)
        self.addCleanup(counter.stop)
        self.start(page, wire, bpf="udp", packets="40000", customer="acme")
        card = page.locator("#running .card").first
        expect(card.locator(".interface")).to_have_text(wire.interface)
        expect(card.locator(".labels")).to_contain_text("customer acme")
        send(wire, 300)
        expect(card.locator("[data-slot=packets]")).to_have_text("300 / 40,000")
        send(wire, 200)
        expect(card.locator("[data-slot=packets]")).to_have_text("500 / 40,000")
        self.assertGreater(float(card.locator("[data-slot=packets-bar]").evaluate("bar => bar.value")), 0.01)
        self.assertGreaterEqual(counter.a_second(3), 200)
        self.end(page, card)
        row = page.locator("#recent tr").first
        expect(row.locator(".badge")).to_have_text("Ended by hand")
        expect(row.locator("[data-slot=packets]")).to_have_text("500")
        expect(row.locator(".deliveries")).to_contain_text(str(daemon.captures))
        self.assertEqual(self.downloaded(page, row), 500)
        expect(page.locator("#running .card")).to_have_count(OTHERS)

    def test_responsive(self) -> None:
        """However many events arrive, the page is drawn a few times a second, and mostly idle."""
        daemon = self.daemon()
        for _ in range(OTHERS):
            daemon.capture(interface=["lo"], bpf="udp port 9", duration=300, timeout=300)
        page = self.visit(daemon).page
        expect(page.locator("#running .card")).to_have_count(OTHERS)
        counter = EventCounter(daemon)
        self.addCleanup(counter.stop)
        tools = page.context.new_cdp_session(page)
        tools.send("Performance.enable", {"timeDomain": "threadTicks"})

        def metrics() -> dict[str, float]:
            return {one["name"]: one["value"] for one in tools.send("Performance.getMetrics")["metrics"]}

        before, seconds = metrics(), 6
        self.assertGreaterEqual(counter.a_second(seconds), 200)
        spent = {name: value - before[name] for name, value in metrics().items()}
        self.assertLess(spent["LayoutCount"], 10 * seconds)
        busy = spent["ScriptDuration"] + spent["LayoutDuration"] + spent["RecalcStyleDuration"]
        self.assertLess(busy, seconds / 3)

    def test_limit(self) -> None:
        """A capture that reaches a limit becomes a recent one by itself, with its reason."""
        wire = self.wire()
        daemon = self.daemon()
        page = self.visit(daemon).page
        expect(page.locator("#running-empty")).to_be_visible()
        self.start(page, wire, packets="10")
        expect(page.locator("#running .card")).to_have_count(1)
        send(wire, 10)
        expect(page.locator("#recent .badge")).to_have_text("Packet limit")
        expect(page.locator("#running-empty")).to_be_visible()

    def test_so_far(self) -> None:
        """A running capture can be downloaded."""
        wire = self.wire()
        daemon = self.daemon()
        page = self.visit(daemon).page
        self.start(page, wire, packets="1000")
        send(wire, 600)
        card = page.locator("#running .card").first
        expect(card.locator("[data-slot=packets]")).to_have_text("600 / 1,000")
        self.assertGreater(self.downloaded(page, card), 0)

    def test_mistakes(self) -> None:
        """What is wrong with a request is shown beside the field, before and after it is sent."""
        daemon = self.daemon()
        page = self.visit(daemon, allowed="400 (Bad Request)").page
        page.get_by_role("button", name="New capture").click()
        page.get_by_label("Filter").fill("tcp prot 80")
        expect(page.locator("#filter-state")).to_contain_text("prot")
        expect(page.locator("#bpf")).to_have_attribute("aria-invalid", "true")
        page.get_by_label("Packets").fill("999999999")
        page.get_by_role("button", name="Start capture").click()
        expect(page.locator("#interface-error")).to_have_text("Choose at least one interface.")
        expect(page.locator("#packets-error")).to_contain_text("at most")
        page.get_by_label("Packets").fill("10")
        page.get_by_role("checkbox", name="lo", exact=False).first.check()
        page.get_by_role("button", name="Start capture").click()
        expect(page.locator("#filter-state")).to_contain_text("prot")
        page.get_by_label("Filter").fill("tcp port 80")
        expect(page.locator("#filter-state")).to_contain_text("Valid")
        page.get_by_role("button", name="Start capture").click()
        expect(page.locator("#running .card")).to_have_count(1)

    def start(self, page: Page, wire: Wire, **fields: str) -> None:
        """Fill in the form, and send it."""
        page.get_by_role("button", name="New capture").click()
        page.get_by_role("checkbox", name=wire.interface, exact=False).check()
        for name, value in fields.items():
            page.locator(f"#{name}").fill(value)
        if "bpf" in fields:
            expect(page.locator("#filter-state")).to_contain_text("Valid")
        page.get_by_role("button", name="Start capture").click()
        expect(page.locator("#start-dialog")).to_be_hidden()

    def end(self, page: Page, card: Any) -> None:
        """End a capture, and confirm it."""
        card.locator("[data-slot=end]").click()
        page.get_by_role("button", name="End capture").click()
        expect(page.locator("#end-dialog")).to_be_hidden()

    def downloaded(self, page: Page, place: Any) -> int:
        """Download a capture. How many packets are in it, which tshark reads without a complaint."""
        with page.expect_download() as downloading:
            place.locator("[data-slot=download]").click()
        path = Path(self.mktemp())
        downloading.value.save_as(path)
        self.assertRegex(downloading.value.suggested_filename, r"\.pcap$")
        self.assertIsNone(tshark_complaint(path))
        return len(read_packets(path))


class HostileTextTests(PageTestCase):
    """Aliases, labels and filters are text, whatever is in them."""

    def test_hostile_text(self) -> None:
        """Markup, quotes and 1,000 characters are shown as they are, and neither run nor break the page."""
        wire = self.wire()
        # No request may name the long one.
        long_alias, alias = (HOSTILE + "a" * 1000)[:1000], HOSTILE
        tags = (HOSTILE.replace(",", ";") + "t" * 1000)[:1000]
        bpf = "tcp[0] < 3" + " or port 443" * 82
        self.assertGreater(len(bpf), 990)
        daemon = self.daemon(
            f"[[interface]]\nname = {json.dumps(wire.interface)}\nalias = {toml_list(long_alias, alias)}\n",
            general="maxfilter = 1000",
        )
        for size in ({"width": 1280, "height": 900}, {"width": 390, "height": 844}):
            page = self.visit(daemon, viewport=size).page
            page.get_by_role("button", name="New capture").click()
            page.get_by_role("radio", name="Aliases").check()
            expect(page.locator(".choice-name")).to_have_text([long_alias, alias])
            page.get_by_role("checkbox").last.check()
            page.locator("#bpf").fill((HOSTILE + "f" * 1000)[:1000])
            expect(page.locator("#filter-state")).to_have_attribute("data-kind", "bad")
            page.locator("#bpf").fill(bpf)
            expect(page.locator("#filter-state")).to_have_attribute("data-kind", "good")
            page.locator("#tags").fill(tags)
            page.locator("#customer").fill(HOSTILE)
            self.check(page)
            page.get_by_role("button", name="Start capture").click()
            card = page.locator("#running .card").first
            expect(card.locator(".filter")).to_have_text(bpf)
            expect(card.locator(".labels")).to_contain_text(HOSTILE)
            self.check(page)
            card.locator("[data-slot=end]").click()
            self.check(page)
            page.get_by_role("button", name="End capture").click()
            expect(page.locator("#recent .labels").first).to_contain_text(HOSTILE)
            self.check(page)
            page.locator("#search").fill(HOSTILE)
            expect(page.locator("#recent tr").first).to_be_visible()

    def test_hostile_requests(self) -> None:
        """Requests that are refused are shown with their reasons, as text."""
        daemon = self.daemon()
        page = self.visit(daemon).page
        expect(page.locator("#link-text")).to_have_text("Live")
        message = {
            "node": daemon.node,
            "interface": [HOSTILE],
            "bpf": HOSTILE,
            HOSTILE: 1,
            "customer": HOSTILE,
        }
        self.assertEqual(daemon.request("POST", "/captures", json.dumps(message).encode())[0], 400)
        expect(page.locator("#refused")).to_contain_text("<script>alert(1)</script>")
        self.check(page)

    def check(self, page: Page) -> None:
        """Nothing ran, nothing became an element, and nothing is wider than the window."""
        self.assertEqual(page.locator("script").count(), 1)
        self.assertEqual(page.locator("img").count(), 0)
        width = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        self.assertLessEqual(width[0], width[1])


class TokenTests(PageTestCase):
    """A node that requires a token."""

    def secured(self, *lines: str) -> tuple[Daemon, str]:
        """A daemon with tokens, and the first of them."""
        file = Path(self.mktemp()).absolute()
        file.write_text("\n".join(lines) + "\n")
        file.chmod(0o600)
        return self.daemon(f'tokenfile = "{file}"'), lines[0].split()[0]

    def test_token(self) -> None:
        """It is asked for once in each tab, survives a reload, and never is in a URL or in another tab."""
        daemon, token = self.secured("tok-en.with~all_kinds+of/characters==")
        visitor = self.visit(daemon, allowed="401 (Unauthorized)")
        page = visitor.page
        page.get_by_role("textbox", name="Token").fill("wrong-wrong")
        page.get_by_role("button", name="Continue").click()
        expect(page.locator("#token-error")).to_have_text("This node doesn’t accept that token.")
        page.get_by_role("textbox", name="Token").fill(token)
        page.keyboard.press("Enter")
        expect(page.locator("#link-text")).to_have_text("Live")
        page.reload()
        expect(page.locator("#link-text")).to_have_text("Live")
        expect(page.locator("#token-dialog")).to_be_hidden()
        other = visitor.new_tab()
        other.goto(page.url)
        expect(other.locator("#token-dialog")).to_be_visible()
        page.get_by_role("button", name="Forget token").click()
        expect(page.locator("#token-dialog")).to_be_visible()
        self.assertEqual([url for url in visitor.urls if "tok" in re.sub(r"^\w+://[^/]*", "", url)], [])

    def test_reader(self) -> None:
        """With a token that may only read, captures are shown, and starting one is refused in words."""
        daemon, token = self.secured("reader-token-1 read", "writer-token-1 capture")
        page = self.visit(daemon, allowed="Failed to load resource").page
        page.get_by_role("textbox", name="Token").fill(token)
        page.keyboard.press("Enter")
        expect(page.locator("#link-text")).to_have_text("Live")
        page.get_by_role("button", name="New capture").click()
        page.get_by_role("checkbox", name="lo", exact=False).first.check()
        page.get_by_role("button", name="Start capture").click()
        expect(page.locator("#start-error")).to_contain_text("capture")


class OutageTests(PageTestCase):
    """What the page does if the node or its events can't be had."""

    def test_restart(self) -> None:
        """If a node is gone, its captures stand still; when it is back, the page goes on by itself."""
        wire = self.wire()
        daemon = self.daemon()
        page = self.visit(daemon, allowed="Failed to load resource").page
        expect(page.locator("#link-text")).to_have_text("Live")
        daemon.capture(interface=[wire.interface], duration=300, timeout=300)
        card = page.locator("#running .card")
        expect(card.locator("[data-slot=rate]")).to_have_text("0")
        daemon.signal(9)
        daemon.wait()
        expect(page.locator("#banner-text")).to_contain_text("can’t be reached")
        expect(card.locator("[data-slot=rate]")).to_have_text("–")
        stopped = card.locator("[data-slot=duration]").inner_text()
        time.sleep(1.5)
        expect(card.locator("[data-slot=duration]")).to_have_text(stopped)
        daemon.restart()
        expect(page.locator("#link-text")).to_have_text("Live")
        expect(page.locator("#banner")).to_be_hidden()
        expect(card).to_have_count(0)
        daemon.capture(interface=[wire.interface], duration=300)
        expect(card).to_have_count(1)

    def test_list_fails(self) -> None:
        """If the captures can't be listed at first, they are as soon as they can, and no event is lost."""
        wire = self.wire()
        daemon = self.daemon()
        daemon.capture(interface=["lo"], duration=300)
        visitor = self.visit(daemon, allowed="Failed to load resource")
        page = visitor.page
        expect(page.locator("#running .card")).to_have_count(1)
        lists = "**/captures?limit=1000"
        page.route(lists, lambda route: route.abort())
        page.reload()
        expect(page.locator("#banner-text")).to_contain_text("can’t be reached")
        daemon.capture(interface=[wire.interface], duration=300)
        page.unroute(lists)
        expect(page.locator("#running .card")).to_have_count(2)
        expect(page.locator("#banner")).to_be_hidden()
        expect(page.locator("#link-text")).to_have_text("Live")

    def test_without_events(self) -> None:
        """If all places for readers of events are taken, the page polls; later, it gets a place."""
        wire = self.wire()
        daemon = self.daemon()
        counters = []
        for _ in range(50):
            counters.append(EventCounter(daemon))
            self.addCleanup(counters[-1].stop)
        page = self.visit(daemon, allowed="503 (Service Unavailable)").page
        expect(page.locator("#link-text")).to_have_text("Every 2 s")
        capture = daemon.capture(interface=[wire.interface], duration=300)
        card = page.locator("#running .card")
        expect(card).to_have_count(1)
        send(wire, 5)
        expect(card.locator("[data-slot=packets]")).to_contain_text("5 /")
        daemon.request("DELETE", f"/captures/{capture}")
        expect(page.locator("#recent .badge")).to_have_text("Ended by hand")
        for counter in counters:
            counter.stop()
        expect(page.locator("#link-text")).to_have_text("Live")
