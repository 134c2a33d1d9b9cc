"""pcapctl with real daemons, through each transport."""

from __future__ import annotations

import json
import re
import shlex
import signal
import socket
import threading
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from peers.certificates import Authority
from peers.daemon import Daemon
from peers.frames import udp_frame
from peers.process import free_port
from peers.redis import RedisServer
from peers.wire import Wire
from tests.integration.pcapctl_case import Running, Terminal, pcapctl
from tests.integration.test_all_sources import AllSourcesCase

_TOKEN = "t0ken-of-the-reader-and-writer"


class Traffic:
    """Sends a few packets again and again, until it is stopped."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop."""
        self._stopped.set()
        self._thread.join()

    def _send(self) -> None:
        while not self._stopped.wait(0.05):
            self._wire.send([udp_frame(number) for number in range(5)])


class TransportsTests(AllSourcesCase):
    """A daemon with all sources and channels."""

    timeout = 300

    def setUp(self) -> None:
        """Set it up, with traffic."""
        super().setUp()
        self.events = f"{self.topic}-events"
        self.brokers.kafka.create_topic(self.events)
        self.event_queue = self.brokers.sqs.create_queue(self.events, VisibilityTimeout="30")
        self.node = self.daemon(
            more=f'[reports.redis]\nsend = true\n[reports.kafka]\nsend = true\ntopic = "{self.events}"\n'
            f'[reports.sqs]\nsend = true\nurl = "{self.event_queue}"\n[reports]\nprogressinterval = 0.5\n'
        )
        traffic = Traffic(self.wire)
        self.addCleanup(traffic.stop)

    def ways(self) -> dict[str, list[str]]:
        """The options of each transport."""
        kafka = f"kafka://{self.brokers.kafka.server}"
        return {
            "http": ["--via", f"http://127.0.0.1:{self.node.port}"],
            "redis": ["--via", f"redis://127.0.0.1:{self.brokers.redis.port}", "--node", "node-1"],
            "kafka": [
                *("--via", f"{kafka}/{self.topic}", "--reports", f"{kafka}/{self.events}"),
                *("--node", "node-1"),
            ],
            "sqs": [
                *("--via", f"sqs:{self.queue}", "--reports", f"sqs:{self.event_queue}"),
                *("--node", "node-1"),
            ],
        }

    def test_each(self) -> None:
        """Through each transport, a capture is requested and delivered, and what is shown of it is true."""
        for name, way in self.ways().items():
            words = ("capture", *way, "-i", self.wire.interface, "-c", "20", "--wait", "udp")
            # Each imports what it needs.
            ended = pcapctl(*words, is_cold=True)
            self.assertEqual((ended.status, ended.errors), (0, ""), (name, ended))
            place = f"node-1:{self.wire.interface} "
            (outcome,) = [line for line in ended.lines if line.startswith(place)]
            self.assertRegex(outcome, r"delivered 20 packets, [\d.]+ kB: (\S+\.pcap)$")
            file = Path(outcome.rpartition(" ")[2])
            state = self.node.done(file.stem.rpartition("-")[2])
            self.assertEqual((state["source"], state["bpf"]), (name, "udp"))
            self.assertEqual(file.stat().st_size, state["bytes"])

    def test_stop(self) -> None:
        """Through each transport, a request is stopped by its name."""
        for name, way in self.ways().items():
            sent = pcapctl("capture", *way, "-i", self.wire.interface, "--duration", "60", "udp")
            self.assertEqual((sent.status, sent.errors), (0, ""), (name, sent))
            (requestid,) = sent.lines
            capture_id = self.node.until(lambda r=requestid: self.capture_of(r), f"the capture by {name}")
            via = way[:2]
            ended = pcapctl("stop", *via, "--request", requestid)
            self.assertEqual((ended.status, ended.lines, ended.errors), (0, [], ""), name)
            self.assertEqual(self.node.done(capture_id)["reason"], "cancelled")

    def capture_of(self, requestid: str) -> str | None:
        """The running capture of a request."""
        api = f"http://127.0.0.1:{self.node.port}"
        ended = pcapctl("list", "--api", api, "--request", requestid, "--state", "capturing", "--json")
        self.assertEqual(ended.status, 0, ended)
        return next((json.loads(line)["id"] for line in ended.lines), None)

    def test_watch(self) -> None:
        """Events of all requests are shown as they happen, as far as they are wanted."""
        way = self.ways()["redis"]
        watching = Running("watch", *way[:2], "--type", "request", "--type", "capture.done", "--json")
        self.addCleanup(watching.end)
        self.addCleanup(watching.interrupt)
        redis = self.brokers.redis
        self.node.until(lambda: redis.subscribers("capture-events") or None, "a subscriber")
        pcapctl("capture", *way, "-i", self.wire.interface, "-c", "1")
        types = [json.loads(watching.first_line())["type"] for _ in range(2)]
        self.assertEqual(types, ["pcapsvc.request.accepted", "pcapsvc.capture.done"])

    def test_foreign_events(self) -> None:
        """In a queue, events of others stay for their own readers."""
        api = f"http://127.0.0.1:{self.node.port}"
        body = json.dumps({"node": "any", "interface": [self.wire.interface], "packets": 1})
        self.send(self.node, "http", body)
        ended = pcapctl("capture", *self.ways()["sqs"], "-i", self.wire.interface, "-c", "1", "--wait")
        self.assertEqual(ended.status, 0, ended)
        listed = pcapctl("list", "--api", api, "--json")
        by_http = {state["id"] for state in map(json.loads, listed.lines) if state["source"] == "http"}
        left: set[Any] = set()

        def look() -> bool | None:
            for message in self.brokers.sqs.receive(self.event_queue, MaxNumberOfMessages=10):
                left.add(json.loads(message["Body"]).get("subject"))
            return by_http <= left or None

        self.node.until(look, "the events of the other request")


class FleetTests(SynchronousTestCase):
    """Some daemons on one Redis server, which differ in what they can do."""

    timeout = 300

    def setUp(self) -> None:
        """A server and a wire."""
        self.wire = Wire()
        self.addCleanup(self.wire.stop)
        self.wire.start()
        self.redis = RedisServer(password="hunter2 hunter2")
        self.addCleanup(self.redis.stop)
        self.redis.start()
        self.password = Path(self.mktemp()).absolute()
        self.password.write_text("hunter2 hunter2\n")
        traffic = Traffic(self.wire)
        self.addCleanup(traffic.stop)

    def daemon(self, node: str, general: str = "") -> Daemon:
        """One daemon."""
        server = f'host = "127.0.0.1"\nport = {self.redis.port}\nauth = "hunter2 hunter2"\n'
        daemon = Daemon(
            f"[redis]\nlisten = true\n{server}[reports.redis]\nsend = true\n"
            "[reports]\nprogressinterval = 0.5\n",
            node=node,
            general=general,
        )
        self.addCleanup(daemon.stop)
        daemon.start()
        daemon.logged("subscribed to channel")
        return daemon

    def options(self, *words: str) -> list[str]:
        """The options of a request to the fleet."""
        return [
            *("capture", "--via", f"redis://127.0.0.1:{self.redis.port}"),
            *("--passwordfile", str(self.password), "-i", self.wire.interface, *words),
        ]

    def test_statuses(self) -> None:
        """Each exit status: nobody, everything, some of it, a rejection, and none at all."""
        nobody = pcapctl(*self.options("--all", "--wait", "-c", "1"))
        self.assertEqual((nobody.status, nobody.lines), (4, []), nobody)
        self.daemon("web-1")
        self.daemon("web-2", general="maxpackets = 10")
        for words, status, shown in (
            (("--all", "-c", "5"), 0, ["web-1 delivered", "web-2 delivered"]),
            (("--nodere", "^web", "-c", "20"), 1, ["web-1 delivered", "web-2 rejected"]),
            (("--node", "web-2", "-c", "20"), 3, ["web-2 rejected"]),
            (("--node", "web-3", "-c", "5"), 4, []),
            (
                ("--all", "-c", "5", "--expect", "3", "--deadline", "15"),
                1,
                ["web-1 delivered", "web-2 delivered"],
            ),
            (
                ("--all", "--duration", "60", "--deadline", "10", "port 1 and"),
                1,
                ["web-1 capturing", "web-2 capturing"],
            ),
        ):
            ended = pcapctl(*self.options("--wait", *words, "udp"))
            outcomes = [
                " ".join(line.replace(":", " ").split()[:3]) for line in ended.lines if line[0] == "w"
            ]
            found = [line.replace(f" {self.wire.interface}", "") for line in outcomes]
            self.assertEqual(
                (ended.status, [" ".join(line.split()[:2]) for line in found]),
                (status, shown),
                (words, ended),
            )
            self.assertEqual("pcapctl: no node has answered" in ended.errors, not shown, ended)
        self.assertEqual(pcapctl(*self.options("--packets", "x")).status, 2)

    def test_terminal(self) -> None:
        """In a terminal, there is one line for each capture, which is redrawn, and locations below."""
        for node in ("web-1", "web-2"):
            self.daemon(node)
        terminal = Terminal(*self.options("--all", "-c", "150", "--wait", "udp"))
        self.assertEqual(terminal.end(), 0, terminal.text)
        text = terminal.text
        self.assertRegex(text, r"web-1 +\S+ +capturing .* % packets")
        last = text[text.rindex("node ") :]
        for node in ("web-1", "web-2"):
            self.assertRegex(last, rf"{node} +{self.wire.interface} +delivered +packets +150 .* local\n")
            self.assertRegex(last, rf"{node}:{self.wire.interface}: /\S+\.pcap\n")
        self.assertNotIn("hunter2", text)

    def test_interrupted(self) -> None:
        """Ctrl-C offers to stop the captures; answered with yes, their outcome is shown."""
        node = self.daemon("web-1")
        terminal = Terminal(*self.options("--all", "--wait", "udp"))
        terminal.shows(r"capturing +\S+ +\d+ % \w+ +[1-9]")
        terminal.type("\x03")
        terminal.shows(r"Stop the captures on 1 node\?")
        terminal.type("y\n")
        self.assertEqual(terminal.end(), 130, terminal.text)
        self.assertRegex(terminal.text, r"delivered +cancelled")
        self.assertEqual(node.request("GET", "/captures")[1]["captures"][0]["reason"], "cancelled")

    def test_interrupted_twice(self) -> None:
        """A second Ctrl-C leaves them running; without a terminal, the first does. Both say how to end it."""
        node = self.daemon("web-1", general="maxcaptures = 4")
        terminal = Terminal(*self.options("--all", "--wait", "udp"))
        terminal.shows(r"capturing +\S+ +\d+ % ")
        terminal.type("\x03")
        terminal.shows(r"Stop the captures on 1 node\?")
        terminal.type("\x03")
        self.assertEqual(terminal.end(), 130, terminal.text)
        self.assertIn("captures on 1 node go on", terminal.text)
        running = Running(*self.options("--all", "--wait", "udp"))
        running.first_line()
        running.first_line()
        running.interrupt()
        ended = running.end()
        self.assertEqual(ended.status, 130)

        def capturing() -> int:
            return len(node.request("GET", "/captures?state=capturing")[1]["captures"])

        self.assertEqual(capturing(), 2)
        [again] = re.findall("to stop them: pcapctl (.*)\n", ended.errors)
        self.assertEqual(pcapctl(*shlex.split(again)).status, 0, again)
        node.until(lambda: capturing() == 1 or None, "the end of a capture")

    def test_signal_unseen(self) -> None:
        """A signal that interrupts nothing, as another thread gets it, is noticed all the same."""
        self.daemon("web-1")
        terminal = Terminal(*self.options("--all", "--wait", "udp"))
        terminal.shows(r"capturing +\S+ +\d+ % ")
        terminal.type("\x03")
        terminal.shows(r"Stop the captures on 1 node\?")
        terminal.signal_thread(signal.SIGINT)
        self.assertEqual(terminal.end(), 130, terminal.text)
        self.assertIn("captures on 1 node go on", terminal.text)


class ApiTests(SynchronousTestCase):
    """Commands about nodes and captures, over TLS and with a token."""

    timeout = 300

    def setUp(self) -> None:
        """A daemon with a token."""
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        self.authority = Authority(directory)
        self.token = directory / "token"
        self.token.write_text(f"{_TOKEN}\n")
        self.node = Daemon(f'tokenfile = "{self.token}"\n', node="web-1", authority=self.authority)
        self.addCleanup(self.node.stop)
        self.directory = directory

    def test_commands(self) -> None:
        """Nodes, interfaces and captures are listed and shown, and captures are stopped by their id."""
        self.patch(Daemon, "_answers", lambda daemon: _is_open(daemon.port))
        self.node.start()
        url = f"https://localhost:{self.node.port}"
        configuration = self.directory / "pcapctl.toml"
        configuration.write_text(
            f'default = "a"\n[profiles.a]\nvia = "{url}"\ntokenfile = "{self.token}"\n'
            f'cafile = "{self.authority.file}"\n[profiles.a.defaults]\ninterface = ["lo"]\n'
        )
        run = lambda *words: pcapctl(*words, is_cold=True, XDG_CONFIG_HOME=str(self.directory))  # noqa: E731
        sent = run("capture", "--duration", "60", "udp", "port", "9")
        self.assertEqual((sent.status, sent.errors), (0, ""))
        nodes, interfaces, listed = run("nodes"), run("interfaces"), run("list")
        self.assertRegex(nodes.lines[1], rf"^web-1 +{url} +\S+ +1 +http +local")
        self.assertTrue([line for line in interfaces.lines if "127.0.0.1/8" in line])
        capture_id = listed.lines[1].split()[0]
        self.assertRegex(listed.lines[1], r"capturing +web-1 +lo .*udp port 9$")
        self.assertEqual(json.loads("".join(run("show", capture_id).lines))["id"], capture_id)
        self.assertEqual(run("stop", capture_id).status, 0)
        self.assertEqual(json.loads("".join(run("show", capture_id).lines))["reason"], "cancelled")
        again = run("stop", capture_id)
        self.assertEqual((again.status, again.lines), (3, []))
        self.assertEqual(run("show", "nosuch").status, 3)
        wrong = pcapctl("list", "--api", url, "--cafile", str(self.authority.file), PCAPCTL_TOKEN="x" * 20)
        self.assertEqual((wrong.status, "401" in wrong.errors), (3, True), wrong)
        untrusted = pcapctl("list", "--api", url, PCAPCTL_TOKEN=_TOKEN)
        self.assertEqual((untrusted.status, "TLS failed" in untrusted.errors), (4, True), untrusted)
        for ended in (sent, nodes, listed, again, wrong, untrusted):
            self.assertNotIn(_TOKEN, "\n".join([*ended.lines, ended.errors]))

    def test_nobody(self) -> None:
        """Nothing listens, or something else than a node."""
        dead = f"http://127.0.0.1:{free_port()}"
        self.assertEqual(pcapctl("nodes", "--api", dead).status, 4)
        self.assertEqual(pcapctl("capture", "--via", dead, "-i", "lo", "--wait").status, 4)
        self.assertEqual(pcapctl("capture", "--via", f"unix:{self.token}", "-i", "lo").status, 4)


def _is_open(port: int) -> bool:

    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
