"""The web page for those who use a keyboard, a screen reader, a phone, or a dark screen."""

from __future__ import annotations

from collections.abc import Iterator

from playwright.sync_api import Page, expect

from peers.chromium import Visitor
from peers.daemon import Daemon
from tests.integration.page_case import PATIENCE, PageTestCase, send

shared_peer = "Chromium"

expect.set_options(timeout=PATIENCE)

# Each text that is seen, with its contrast against the background behind it, if that is too small (WCAG 2.2,
# 1.4.3). Disabled controls are exempt.
_FAINT = """() => {
  const parse = (color) => {
    const found = color.match(/[\\d.]+/g).map(Number);
    const scale = color.startsWith("color(") ? 255 : 1;
    return [found[0] * scale, found[1] * scale, found[2] * scale, found[3] ?? 1];
  };
  const over = (top, below) => [0, 1, 2].map((at) => top[at] * top[3] + below[at] * (1 - top[3]));
  const background = (element) => {
    if (!element) return [255, 255, 255];
    const own = parse(getComputedStyle(element).backgroundColor);
    return own[3] === 1 ? own : over(own, background(element.parentElement));
  };
  const light = (color) => {
    const [red, green, blue] = color.map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const faint = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  for (let text = texts.nextNode(); text; text = texts.nextNode()) {
    const element = text.parentElement;
    if (!text.data.trim() || !element.checkVisibility({ visibilityProperty: true })) continue;
    if (element.closest(".unseen, :disabled, label:has(:disabled), script, noscript")) continue;
    seen++;
    const style = getComputedStyle(element);
    const behind = background(element);
    const ink = light(over(parse(style.color), behind));
    const paper = light(behind);
    const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    const size = parseFloat(style.fontSize);
    const isLarge = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (isLarge ? 3 : 4.5)) faint.push(`${text.data.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return [seen, faint];
}"""


# What is beyond the sides of the window, however it got there.
_OUTSIDE = """() => [...document.querySelectorAll("body *")]
  .filter((one) => one.checkVisibility({ visibilityProperty: true }) && !one.closest(".unseen, .skip, thead"))
  .filter((one) => {
    const { left, right, width } = one.getBoundingClientRect();
    return width > 0 && (left < -1 || right > innerWidth + 1);
  })
  .map((one) => one.outerHTML.slice(0, 80))"""

# The buttons that are less than 40 pixels high, without the small ones in corners.
_SMALL = """() => [...document.querySelectorAll("button:not(.icon)")]
  .filter((one) => one.checkVisibility() && one.getBoundingClientRect().height < 40)
  .map((one) => one.textContent.trim())"""


class AccessTests(PageTestCase):
    """A page with running, ended and refused captures, and its dialogs."""

    def populated(self) -> Daemon:
        """A daemon that has something to show of each kind."""
        wire = self.wire()
        daemon = self.daemon('[redis]\nlisten = true\nhost = "127.0.0.1"\nport = 9\n')
        done = daemon.capture(interface=[wire.interface], packets=3, customer="acme", tags="one,two")
        send(wire, 3)
        daemon.done(done)
        daemon.capture(interface=[wire.interface], bpf="udp", duration=300)
        daemon.capture(interface=["lo"], bpf="udp port 9", duration=300)
        return daemon

    def states(self, visitor: Visitor, daemon: Daemon) -> Iterator[str]:
        """Bring the page from one state to the next. The name of each."""
        page = visitor.page
        expect(page.locator("#link-text")).to_have_text("Live")
        expect(page.locator("#recent tr")).to_have_count(1)
        daemon.request("POST", "/captures", b'{"node": "node-1", "interface": ["lo"], "bfp": "tcp"}')
        expect(page.locator("#refused li")).to_have_count(1)
        yield "captures"
        page.get_by_role("button", name="New capture").click()
        page.locator("#bpf").fill("tcp prot 80")
        expect(page.locator("#filter-state")).to_have_attribute("data-kind", "bad")
        page.get_by_text("Snap length").click()
        page.get_by_role("button", name="Start capture").click()
        yield "form"
        page.keyboard.press("Escape")
        page.locator("[data-slot=end]").first.click()
        yield "confirmation"
        page.keyboard.press("Escape")
        page.locator("#search").fill("nothing like this")
        expect(page.locator("#recent-empty")).to_be_visible()
        yield "nothing found"

    def test_names(self) -> None:
        """Everything that can be operated, and each bar and region, has a name for a screen reader."""
        daemon = self.populated()
        visitor = self.visit(daemon)
        for state in self.states(visitor, daemon):
            self.assertEqual(visitor.unnamed(), [], state)

    def test_contrast(self) -> None:
        """Text can be read, on a light and on a dark screen."""
        daemon = self.populated()
        for scheme in ("light", "dark"):
            visitor = self.visit(daemon, color_scheme=scheme)
            for state in self.states(visitor, daemon):
                seen, faint = visitor.page.evaluate(_FAINT)
                self.assertGreater(seen, 20)
                self.assertEqual(faint, [], f"{state}, {scheme}")

    def test_narrow(self) -> None:
        """On a phone, and at 320 pixels, nothing is cut off, and buttons are large enough for a finger."""
        daemon = self.populated()
        for width in (390, 320):
            visitor = self.visit(
                daemon, viewport={"width": width, "height": 700}, has_touch=True, is_mobile=True
            )
            for state in self.states(visitor, daemon):
                self.assertEqual(visitor.page.evaluate(_OUTSIDE), [], f"{state}, {width} pixels")
            name = visitor.page.locator("#node-name")
            self.assertTrue(name.evaluate("(one) => one.scrollWidth <= one.clientWidth"), f"{width} pixels")
            small = visitor.page.evaluate(_SMALL)
            self.assertEqual(small, [])

    def test_changes_are_read_out(self) -> None:
        """A screen reader hears that captures start and end, and nothing of their progress."""
        wire = self.wire()
        daemon = self.daemon()
        page = self.visit(daemon).page
        expect(page.locator("#link-text")).to_have_text("Live")
        capture = daemon.capture(interface=[wire.interface], duration=300)
        expect(page.locator("#announcer")).to_have_text(f"Capture on {wire.interface}, every packet started")
        send(wire, 77)
        expect(page.locator("[data-slot=packets]")).to_contain_text("77 /")
        live = page.locator("[aria-live], [role=status], [role=alert]").all_inner_texts()
        self.assertEqual([text for text in live if "77 /" in text], [])
        daemon.request("DELETE", f"/captures/{capture}")
        expect(page.locator("#announcer")).to_have_text(f"Capture on {wire.interface}, every packet ended")


class KeyboardTests(PageTestCase):
    """Somebody who has no mouse."""

    def test_keyboard(self) -> None:
        """A capture is started, ended and downloaded with the keyboard alone, and the focus is never lost."""
        wire = self.wire()
        daemon = self.daemon()
        page = self.visit(daemon).page
        expect(page.locator("#open-start")).to_be_enabled()
        self.go_to(page, "#open-start")
        page.keyboard.press("Enter")
        self.go_to(page, f'#choices input[value="{wire.interface}"]')
        page.keyboard.press("Space")
        self.go_to(page, "#bpf")
        page.keyboard.type("udp")
        expect(page.locator("#filter-state")).to_contain_text("Valid")
        self.go_to(page, "#customer")
        page.keyboard.type("acme")
        page.keyboard.press("Enter")
        expect(page.locator("#start-dialog")).to_be_hidden()
        self.assert_focus(page, "#open-start")
        expect(page.locator("#running .card")).to_have_count(1)
        send(wire, 5)
        expect(page.locator("[data-slot=packets]")).to_contain_text("5 /")
        self.go_to(page, "#running [data-slot=end]")
        page.keyboard.press("Enter")
        page.keyboard.press("Escape")
        self.assert_focus(page, "#running [data-slot=end]")
        page.keyboard.press("Enter")
        self.assert_focus(page, "#end-confirm")
        page.keyboard.press("Enter")
        expect(page.locator("#running .card")).to_have_count(0)
        self.assert_focus(page, "#running-title")
        with page.expect_download() as downloading:
            self.go_to(page, "#recent [data-slot=download]")
            page.keyboard.press("Enter")
        self.assertRegex(downloading.value.suggested_filename, r"\.pcap$")

    def test_skip(self) -> None:
        """The first stop leads past the bar at the top."""
        page = self.visit(self.daemon()).page
        expect(page.locator("#open-start")).to_be_enabled()
        page.keyboard.press("Tab")
        self.assert_focus(page, ".skip")
        page.keyboard.press("Enter")
        self.assert_focus(page, "#running-title")

    def test_dialogs_keep_the_focus(self) -> None:
        """In a dialog, what is behind it can't be reached, and the focus is visible everywhere."""
        page = self.visit(self.daemon()).page
        expect(page.locator("#open-start")).to_be_enabled()
        self.go_to(page, "#open-start")
        page.keyboard.press("Enter")
        expect(page.locator("#choices input").first).to_be_visible()
        for _ in range(40):
            page.keyboard.press("Tab")
            inside, outline = page.evaluate(
                "[document.activeElement === document.body || !!document.activeElement.closest('dialog'),"
                " getComputedStyle(document.activeElement).outlineStyle]"
            )
            self.assertTrue(inside)
        page.keyboard.press("Escape")
        self.assert_focus(page, "#open-start")
        self.assertNotEqual(outline, "hidden")

    def go_to(self, page: Page, selector: str) -> None:
        """Press Tab until an element has the focus."""
        expect(page.locator(selector)).to_be_visible()
        for _ in range(80):
            if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                return
            page.keyboard.press("Tab")
        self.fail(f"{selector} can't be reached with the keyboard")

    def assert_focus(self, page: Page, selector: str) -> None:
        """An element has the focus."""
        expect(page.locator(selector)).to_be_focused()
