"""The web page in a real Chromium: start, watch, end and download captures, and hostile text."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect

from peers.daemon import Daemon
from peers.tcpdump import read_packets, tshark_complaint
from peers.wire import Wire
from tests.integration.page_case import HOSTILE, PATIENCE, EventCounter, PageTestCase, send, toml_list

shared_peer = "Chromium"

expect.set_options(timeout=PATIENCE)

# Captures that report their progress ten times a second: 200 events a second on a busy machine, too.
OTHERS = 30


class CaptureTests(PageTestCase):
    """What the page is for."""

    def test_many_captures(self) -> None:
        """
        While 30 captures run and up to 300 events a second arrive, somebody starts a capture from the page,
        sees its progress, ends it, downloads it, and tshark reads it.
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
        counter.wait_for(600)
        self.end(page, card)
        row = page.locator("#recent tr").first
        expect(row.locator(".badge")).to_have_text("Stop request")
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

        before = metrics()
        # On a quiet machine, 300 come in a second.
        seconds = counter.wait_for(1800)
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

    def test_stopped(self) -> None:
        """A capture that a message stops says the same as one that is ended from the page."""
        daemon = self.daemon()
        daemon.capture(interface=["lo"], bpf="udp port 9", duration=300, timeout=300, requestid="job-1")
        page = self.visit(daemon).page
        expect(page.locator("#running .card")).to_have_count(1)
        stop = json.dumps({"node": daemon.node, "stop": "job-1"}).encode()
        self.assertEqual(daemon.request("POST", "/captures", stop)[0], 200)
        expect(page.locator("#recent .badge")).to_have_text("Stop request")

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

    def test_spooled(self) -> None:
        """A destination that doesn't take its captures is not green: it says how many are in the spool."""
        spool = Path(self.mktemp())
        spool.mkdir(0o700)
        wire = self.wire()
        with socket.socket() as refusing:
            refusing.bind(("127.0.0.1", 0))
            port = refusing.getsockname()[1]
            daemon = self.daemon(
                f"[delivery]\nattempts = 1\nspooldir = '{spool.absolute()}'\n[cloudshark]\nupload = true\n"
                f"scheme = 'http'\nhost = '127.0.0.1'\nport = {port}\ntoken = 'hunter23'\n"
            )
            page = self.visit(daemon).page
            destinations = page.locator("#destinations li")
            expect(destinations.locator(".muted")).to_have_text(["nothing waiting", "nothing waiting"])
            self.start(page, wire, packets="10")
            send(wire, 10)
            expect(destinations.locator(".muted")).to_have_text(["nothing waiting", "1 in the spool"])
            expect(destinations.last).to_have_attribute("data-state", "busy")
            page.reload()
            expect(destinations.last).to_have_attribute("data-state", "busy")
            page.close()
            daemon.restart()
            destinations = self.visit(daemon).page.locator("#destinations li")
            expect(destinations.locator(".muted")).to_have_text(["nothing waiting", "1 in the spool"])

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

    def test_plain_words(self) -> None:
        """
        Which packets is said in plain words. The filter that they mean is shown while they are typed, with
        what is wrong beside each field, and is the capture's.
        """
        daemon = self.daemon()
        page = self.visit(daemon, allowed="400 (Bad Request)").page
        page.get_by_role("button", name="New capture").click()
        page.get_by_role("checkbox", name="lo", exact=False).first.check()
        text = page.locator("#filter-text")
        expect(text).to_be_hidden()
        page.get_by_label("Host").fill("192.0.2.7, 2001:db8::7")
        page.get_by_label("Port", exact=True).fill("443 8443")
        expect(text).to_have_text("host (192.0.2.7 or 2001:db8::7) and port (443 or 8443)")
        page.get_by_label("Port", exact=True).fill("443, 8000-8100")
        expect(page.locator("#port-error")).to_have_text("8000-8100 belongs in “Port range”.")
        page.get_by_label("Port", exact=True).fill("443 8443")
        page.get_by_text("Source, destination, port range").click()
        source = page.get_by_role("textbox", name="Source")
        source.fill("192.0.2.9/24")
        expect(page.locator("#src-error")).to_contain_text("the network is 192.0.2.0/24")
        expect(source).to_have_attribute("aria-invalid", "true")
        page.get_by_label("VLAN").fill("seven")
        expect(page.locator("#vlan-error")).to_have_text("seven is not a number.")
        expect(page.locator("#src-error")).to_contain_text("the network is 192.0.2.0/24")
        expect(page.locator("#filter-state")).to_have_text("")
        page.get_by_role("button", name="Start capture").click()
        expect(page.locator("#vlan-error")).to_have_text("seven is not a number.")
        expect(page.locator("#src-error")).to_contain_text("the network is 192.0.2.0/24")
        expect(source).to_be_focused()
        page.get_by_label("VLAN").fill("5000")
        expect(page.locator("#vlan-error")).to_contain_text("0 to 4095")
        page.get_by_role("button", name="Start capture").click()
        expect(page.locator("#src-error")).to_contain_text("the network is 192.0.2.0/24")
        expect(page.locator("#start-dialog")).to_be_visible()
        source.fill("192.0.2.0/24")
        page.get_by_label("VLAN").fill("")
        for name in ("SYN", "RST"):
            page.get_by_label(name).check()
        page.get_by_label("Direction").select_option("in")
        page.get_by_label("Protocol").fill("6")
        page.get_by_label("BPF filter").fill("less 100")
        wanted = (
            "host (192.0.2.7 or 2001:db8::7) and src net 192.0.2.0/24 and proto 6 and port (443 or 8443)"
            " and (tcp[tcpflags] & (tcp-syn|tcp-rst) != 0 or (ip6[6] = 6 and ip6[53] & 0x06 != 0))"
            " and inbound and (less 100)"
        )
        expect(text).to_have_text(wanted)
        expect(page.locator("#filter-state")).to_contain_text("Valid")
        page.get_by_role("button", name="Start capture").click()
        expect(page.locator("#running .card .filter")).to_have_text(wanted)
        [capture] = daemon.request("GET", "/captures")[1]["captures"]
        self.assertEqual(capture["bpf"], wanted)

    def test_no_past(self) -> None:
        """If no interface has a history, the form doesn't ask."""
        page = self.visit(self.daemon()).page
        page.get_by_role("button", name="New capture").click()
        expect(page.get_by_role("checkbox", name="lo", exact=False).first).to_be_visible()
        expect(page.locator("#past")).to_be_hidden()

    def test_past(self) -> None:
        """
        If an interface has a history, the form says how far it reaches, and asks for it; what a capture has
        of the past, and what is missing, is shown while it runs and when it is over.
        """
        wire, other = self.wire(), self.wire()
        daemon = self.daemon(f"[[interface]]\nname = {json.dumps(wire.interface)}\nhistory = 600\n")
        self.recorded(daemon, wire, 20)
        page = self.visit(daemon).page
        page.get_by_role("button", name="New capture").click()
        hint = page.locator("#before-hint")
        expect(hint).to_have_text(re.compile(rf"{wire.interface} remembers \d+ s"))
        page.get_by_role("checkbox", name=other.interface, exact=False).check()
        expect(hint).to_have_text(f"{other.interface} has no history")
        page.get_by_role("checkbox", name=wire.interface, exact=False).check()
        expect(hint).to_contain_text(f"{other.interface} has no history, and is captured from now on")
        expect(page.get_by_label("Past only")).to_be_disabled()
        page.get_by_label("Seconds before").fill("0")
        page.get_by_role("button", name="Start capture").click()
        expect(page.locator("#before-error")).to_have_text("Must be a whole number, 1 or more.")
        page.get_by_label("Seconds before").fill("500")
        page.get_by_role("button", name="Start capture").click()
        past = page.locator("#running .card .past")
        expect(past).to_have_text(
            [re.compile("no packets.*no history"), re.compile("20 packets since.*not yet")]
        )
        page.get_by_role("button", name="New capture").click()
        page.get_by_role("checkbox", name=other.interface, exact=False).uncheck()
        page.get_by_label("Past only").check()
        page.get_by_role("button", name="Start capture").click()
        row = page.locator("#recent tr").first
        expect(row.locator(".badge")).to_have_text("Past only")
        expect(row.locator(".past")).to_contain_text("Past 500 s: 20 packets since")
        expect(row.locator(".past .warn")).to_have_text(re.compile(r"^Missing: \d+ s \(not yet recorded\)$"))
        self.assertEqual(self.downloaded(page, row), 20)

    def test_past_of_interface_that_is_down(self) -> None:
        """The past of an interface that is down can be had; an interface without one can't be chosen."""
        wire, other = self.wire(), self.wire()
        daemon = self.daemon(f"[[interface]]\nname = {json.dumps(wire.interface)}\nhistory = 600\n")
        self.recorded(daemon, wire, 20)
        for each in (wire, other):
            each.down()
        daemon.until(
            lambda: self.up_of(daemon) & {wire.interface, other.interface} == set() or None, "both down"
        )
        page = self.visit(daemon).page
        page.get_by_role("button", name="New capture").click()
        expect(page.get_by_role("checkbox", name=other.interface, exact=False)).to_be_disabled()
        page.get_by_role("checkbox", name=wire.interface, exact=False).check()
        page.get_by_label("Seconds before").fill("500")
        page.get_by_label("Past only").check()
        page.get_by_role("button", name="Start capture").click()
        expect(page.locator("#recent tr").first.locator(".past")).to_contain_text("20 packets since")

    def test_forms(self) -> None:
        """The form offers the formats of the node, and says how its destinations compress files."""
        wire = self.wire()
        daemon = self.daemon(general='localcompress = "gzip"')
        page = self.visit(daemon).page
        page.get_by_role("button", name="New capture").click()
        page.get_by_role("checkbox", name=wire.interface, exact=False).check()
        page.get_by_label("Packets", exact=True).fill("5")
        page.get_by_text("Delivered file").click()
        expect(page.get_by_label("Format").locator("option")).to_have_text(
            ["As the node has it (pcap)", "pcap", "pcapng"]
        )
        expect(page.locator("#compress-hint")).to_have_text("local: gzip")
        page.get_by_label("Format").select_option("pcapng")
        page.get_by_label("Compression").select_option("zstd")
        page.get_by_role("button", name="Start capture").click()
        expect(page.locator("#running .card")).to_have_count(1)
        send(wire, 5)
        expect(page.locator("#recent tr").first.locator(".deliveries")).to_contain_text(".pcapng.zst")
        [path] = daemon.captures.iterdir()
        self.assertEqual(path.name[-11:], ".pcapng.zst")

    def test_rolling(self) -> None:
        """
        The form asks for a rolling capture, which has no limit of packets and no idle time. What it holds,
        and how far back that reaches, is shown while it runs and when it is over.
        """
        wire = self.wire()
        page = self.visit(self.daemon()).page
        page.get_by_role("button", name="New capture").click()
        page.get_by_role("checkbox", name=wire.interface, exact=False).check()
        page.get_by_label("Packets", exact=True).fill("5")
        page.get_by_label("Keep only the newest").check()
        expect(page.get_by_label("Packets", exact=True)).to_be_disabled()
        expect(page.get_by_label("Seconds without a packet")).to_be_disabled()
        expect(page.get_by_label("Past only")).to_be_disabled()
        page.get_by_label("Size of the file").fill(str(24 + 10 * 144))
        page.get_by_label("Unit of the size").select_option("bytes")
        page.get_by_role("button", name="Start capture").click()
        card = page.locator("#running .card")
        expect(card.locator(".past")).to_have_text("Rolling: newest 0 of 0 packets")
        expect(card.get_by_text("Idle")).to_be_hidden()
        send(wire, 25)
        expect(card.locator(".past")).to_have_text(
            re.compile(r"^Rolling: newest 10 of 25 packets, reaches back \d+ s$")
        )
        expect(card.locator("[data-slot=bytes]")).to_have_text("1.5 kB / 1.5 kB")
        card.get_by_role("button", name="End").click()
        page.get_by_role("button", name="End capture").click()
        row = page.locator("#recent tr").first
        expect(row.locator(".past")).to_have_text(
            re.compile(r"^Rolling: newest 10 of 25 packets, since \d\d:\d\d:\d\d$")
        )
        self.assertEqual(self.downloaded(page, row), 10)

    def up_of(self, daemon: Daemon) -> set[str]:
        """The interfaces that are up, as the daemon knows."""
        return {one["name"] for one in daemon.request("GET", "/interfaces")[1]["interfaces"] if one["up"]}

    def recorded(self, daemon: Daemon, wire: Wire, packets: int) -> None:
        """Wait until packets are in the history of a wire."""

        def history() -> Any:
            interfaces = daemon.request("GET", "/interfaces")[1]["interfaces"]
            return next(one["history"] for one in interfaces if one["name"] == wire.interface)

        daemon.until(lambda: history()["since"], "the history to begin")
        send(wire, packets)
        daemon.until(lambda: history()["packets"] >= packets or None, "the packets to be recorded")

    def test_put_url(self) -> None:
        """
        If the node permits any host, a capture may be given a URL. It is not readable on the page, what is
        wrong with it is shown beside it, and it is gone once the capture has started.
        """
        wire = self.wire()
        page = self.visit(self.daemon()).page
        page.get_by_role("button", name="New capture").click()
        expect(page.locator("#puturl")).to_be_hidden()
        page = self.visit(self.daemon('[puturl]\nallow = ["*.example.com"]'), allowed="400").page
        page.get_by_role("button", name="New capture").click()
        field = page.locator("#puturl")
        expect(field).to_be_visible()
        expect(field).to_have_attribute("type", "password")
        page.get_by_role("checkbox", name=wire.interface, exact=False).check()
        field.fill("https://elsewhere.example.org/a?sig=s3cr3t")
        page.get_by_role("button", name="Start capture").click()
        expect(page.locator("#puturl-error")).to_contain_text("must name a host and port")
        field.fill("https://a.example.com/a?sig=s3cr3t")
        page.get_by_role("button", name="Start capture").click()
        expect(page.locator("#start-dialog")).to_be_hidden()
        page.get_by_role("button", name="New capture").click()
        expect(field).to_have_value("")
        self.assertNotIn("s3cr3t", page.content())

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
            page.locator("#choices").get_by_role("checkbox").last.check()
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
