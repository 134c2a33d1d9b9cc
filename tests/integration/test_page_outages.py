"""The web page in a real Chromium: tokens, and what it does if the node can't be had."""

from __future__ import annotations

import re
import time
from pathlib import Path

from playwright.sync_api import expect

from peers.daemon import Daemon
from tests.integration.page_case import PATIENCE, EventCounter, PageTestCase, send
from tests.integration.path_proxy import PathProxy

shared_peer = "Chromium"

expect.set_options(timeout=PATIENCE)


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


class ProxyTests(PageTestCase):
    """Nodes behind a proxy, each below a path of its own."""

    def test_paths(self) -> None:
        """The page of each works below its path, and gets no token of another one."""
        proxy = PathProxy()
        self.addCleanup(proxy.stop)
        proxy.start()
        tokens = {"web-17": "token-of-web-17", "web-18": "token-of-web-18"}
        for name, token in tokens.items():
            proxy.ports[name] = self._node(name, token, f"{proxy.url}/{name}").port
        visitor = self.chromium.visitor()
        self.addCleanup(visitor.close)
        page = visitor.page
        for name, token in tokens.items():
            page.goto(f"{proxy.url}/{name}/")
            page.get_by_role("textbox", name="Token").fill(token)
            page.keyboard.press("Enter")
            expect(page.locator("#link-text")).to_have_text("Live")
            expect(page.locator("#node-name")).to_have_text(name)
        page.goto(f"{proxy.url}/web-17/")
        expect(page.locator("#link-text")).to_have_text("Live")
        page.get_by_role("button", name="New capture").click()
        page.get_by_role("checkbox", name="lo", exact=False).first.check()
        page.get_by_role("button", name="Start capture").click()
        expect(page.locator("#running .card")).to_have_count(1)
        self.assertEqual([one for one in visitor.complaints if "401 (Unauthorized)" not in one], [])

    def _node(self, name: str, token: str, url: str) -> Daemon:
        """A node that requires a token, and is at a URL."""
        file = Path(self.mktemp()).absolute()
        file.write_text(token + "\n")
        file.chmod(0o600)
        return self.daemon(f'tokenfile = "{file}"\nurl = "{url}"', node=name)


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
        daemon.capture(interface=["lo"], bpf="udp port 9", duration=300)
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
        expect(page.locator("#recent .badge")).to_have_text("Stop request")
        for counter in counters:
            counter.stop()
        expect(page.locator("#link-text")).to_have_text("Live")
