"""A headless Chromium, driven over its DevTools protocol by Playwright."""

from __future__ import annotations

import atexit
from functools import cache
from typing import TYPE_CHECKING, Any

from peers.requirement import require_command

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, Playwright

# In milliseconds. A machine that runs several tests at once is slow.
_PATIENCE = 180_000

# The roles of what a person can operate (WAI-ARIA 1.2).
_CONTROLS = frozenset(
    "button link textbox searchbox checkbox radio combobox listbox spinbutton slider switch tab".split()
)
_ALSO_NAMED = frozenset("dialog table progressbar region complementary".split())

# What a window has besides a tab, each with a process of its own, though nobody sees it: two of the address
# bar. They take as long to start as the page.
_UNSEEN = ("WebUIOmniboxPopup", "WebUIOmniboxAimPopup")
# Chromium takes the last of several --disable-features: so these are repeated, which Playwright turns off.
_OFF_ANYWAY = (
    *("AvoidUnnecessaryBeforeUnloadCheckSync", "DestroyProfileOnBrowserClose", "HttpsUpgrades"),
    *("HttpsFirstBalancedModeAutoEnable", "LensOverlay", "MediaRouter", "PaintHolding"),
    *("ThirdPartyStoragePartitioning", "AvoidCorsURLLoaderRestartOnRedirect", "OptimizationHints"),
    *("NetworkTimeServiceQuerying", "AimEnabled", "PreconnectToSearch"),
)
_OPTIONS = (
    # Its sandbox can't be used by root.
    "--no-sandbox",
    "--disable-dev-shm-usage",
    # Nothing on the page is drawn in three dimensions, for which a graphics card would be imitated.
    "--disable-gpu",
    "--disable-software-rasterizer",
    f"--disable-features={','.join((*_OFF_ANYWAY, *_UNSEEN))}",
)


@cache
def shared_chromium() -> Chromium:
    """The browser of all tests: it takes seconds to start, and each visitor has a profile of its own."""
    chromium = Chromium()
    atexit.register(chromium.stop)
    chromium.start()
    return chromium


class Chromium:
    """
    Debian's Chromium, in a process of its own that ends with this one. Nothing is fetched for it: Playwright
    is only the client of the protocol.
    """

    def __init__(self) -> None:
        self._program = require_command("chromium", "chromium")
        self._playwright: Playwright | None = None
        self._browser: Browser | None = None

    def start(self) -> None:
        """Start it, and wait until it can be driven."""
        from playwright.sync_api import sync_playwright

        self._playwright = sync_playwright().start()
        self._browser = self._playwright.chromium.launch(executable_path=self._program, args=_OPTIONS)

    def stop(self) -> None:
        """End it."""
        if self._browser is not None:
            self._browser.close()
        if self._playwright is not None:
            self._playwright.stop()
        self._browser = self._playwright = None

    def visitor(self, **options: Any) -> Visitor:
        """
        Somebody with an empty profile.

        @param options: of C{playwright.Browser.new_context}, such as C{viewport} and C{color_scheme}.
        """
        assert self._browser is not None, "chromium is not running"
        return Visitor(self._browser.new_context(**options))


class Visitor:
    """
    A person with a tab.

    @ivar page: the tab, to be driven with Playwright's methods.
    @ivar urls: of all requests that the tab has made.
    @ivar complaints: what must never happen in any tab: dialogs of scripts, exceptions, and what the browser
        wrote to the console as an error or a warning, such as a violation of the Content-Security-Policy.
    """

    def __init__(self, context: BrowserContext) -> None:
        self._context = context
        self.urls: list[str] = []
        self.complaints: list[str] = []
        context.set_default_timeout(_PATIENCE)
        self.page = self.new_tab()

    def new_tab(self) -> Page:
        """Another tab of the same person, with a session of its own."""
        page = self._context.new_page()
        page.on("request", lambda request: self.urls.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(f"exception: {error}"))
        page.on("dialog", self._dismiss)
        page.on("console", self._read)
        return page

    def close(self) -> None:
        """Close every tab."""
        self._context.close()

    def unnamed(self) -> list[str]:
        """
        What Chromium's accessibility tree shows without a name, though a screen reader needs one.

        @return: the roles, with what else is known about each.
        """
        tools = self._context.new_cdp_session(self.page)
        try:
            nodes = tools.send("Accessibility.getFullAXTree")["nodes"]
        finally:
            tools.detach()
        return [
            f"{_of(node, 'role')} {node.get('properties')}"
            for node in nodes
            if not node["ignored"]
            and _of(node, "role") in _CONTROLS | _ALSO_NAMED
            and not str(_of(node, "name")).strip()
        ]

    def _dismiss(self, dialog: Any) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _read(self, message: Any) -> None:
        if message.type in ("error", "warning", "assert"):
            self.complaints.append(f"{message.type}: {message.text}")


def _of(node: dict[str, Any], name: str) -> Any:
    return node.get(name, {}).get("value", "")
