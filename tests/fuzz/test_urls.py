"""URLs of requests, by the thousand, and names whose addresses change each time that they are looked up."""

from __future__ import annotations

from ipaddress import ip_address
from random import Random
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.core.allowed_hosts import parse_pattern
from pcapsvc.core.errors import DestinationError
from pcapsvc.core.http_url import LONGEST_URL, BadUrl
from pcapsvc.core.public_address import is_public
from pcapsvc.core.put_url import parse_put_url
from pcapsvc.destinations.puturl.destination import PutUrlDestination
from pcapsvc.testing import run_now
from tests.chance import chance
from tests.fuzz.values import VALUES
from tests.unit.contents import MemfdContent, make_artifact
from tests.unit.test_put_url import connections, reactor_with

_PATTERNS = ("*.example.com", "*:8443", "10.0.0.1", "[fd00::1]:8443", "127.0.0.1:*")
_ALLOWED = ("10.0.0.1", "fd00::1", "127.0.0.1")
# To set up TLS takes a hundred times as long as everything else.
_TLS_SHARE = 0.01


class UrlTests(SynchronousTestCase):
    """C{puturl}, from its check to the connection."""

    def setUp(self) -> None:
        self.content = MemfdContent(b"pcap")
        self.addCleanup(self.content.close)

    def test_any(self) -> None:
        """
        Whatever a URL is, and whatever names mean each time that they are looked up: what is connected to is
        public or allowed by its address, and was an answer of this attempt's look-up. The path stays as it
        is.
        """
        random = chance(self.id())
        patterns = [*map(parse_pattern, _PATTERNS)]
        destination = PutUrlDestination(
            None, run_in_thread=run_now, patterns=patterns, insecure=True, ca_file=None, node="web1"
        )
        accepted = connected = 0
        for _ in range(VALUES):
            text = some_url(random)
            problems = [*destination.check({"puturl": text})]
            self.assertIn(destination.route({"puturl": text}), (*destination.routes, None))
            try:
                url = parse_put_url(text)
            except BadUrl:
                self.assertTrue(problems or text == "", text)
                continue
            self.assert_path_is_kept(url, random)
            if problems:
                continue
            accepted += 1
            if url.scheme == "http" or random.random() < _TLS_SHARE:
                connected += self.count_connections(text, patterns, url.port, random)
        self.assertGreater(accepted, VALUES // 100)
        self.assertGreater(connected, VALUES // 100)

    def count_connections(self, text: str, patterns: Any, port: int, random: Random) -> int:
        """Deliver a capture in two attempts, each with answers of its own."""
        answers = [some_addresses(random) for _ in range(4)]
        reactor = reactor_with(*answers)
        destination = PutUrlDestination(
            reactor, run_in_thread=run_now, patterns=patterns, insecure=True, ca_file=None, node="web1"
        )
        count = 0
        for _ in range(2):
            asked = len(reactor.nameResolver.asked)
            storing = destination.store(make_artifact(self.content, destination="puturl", puturl=text))
            reactor.advance(0.3)
            # Addresses are looked up as well, by whatever resolves names.
            self.assertEqual(len(reactor.nameResolver.asked), asked + 1)
            for host, at in connections(reactor)[count:]:
                self.assertTrue(is_public(ip_address(host)) or host in _ALLOWED, text)
                self.assertIn(host, answers[asked])
                self.assertEqual(at, port)
            if any(not is_public(ip_address(each)) and each not in _ALLOWED for each in answers[asked]):
                self.assertEqual(len(connections(reactor)), count, text)
            count = len(connections(reactor))
            storing.cancel()
            self.failureResultOf(storing, DestinationError, CancelledError)
        self.assertTrue(self.content.all_closed)
        self.content.opened.clear()
        return count

    def assert_path_is_kept(self, url: Any, random: Random) -> None:
        """Filling in placeholders changes no part of a path but the one that it is in."""
        values = {name: some_text(random) for name in ("node", "interface", "id")}
        path = url.filled_path(**values)
        self.assertRegex(path, r"\A/[\x21-\x7e]+\Z")
        self.assertEqual(path.count("/"), url.path.count("/"))
        self.assertEqual(path.lower().count("%2f"), url.path.lower().count("%2f"))
        for before, after in zip(url.path.split("/"), path.split("/"), strict=True):
            self.assertNotIn(after.lower().replace("%2e", "."), (".", ".."))
            if "{" not in before:
                self.assertEqual(before, after)


_PIECES = (
    *("https://", "http://", "HTTPS://", "ftp://", "//", "https:", "http:\\\\"),
    *(
        "a.example.com",
        "s3.example.com.",
        "evil-example.com",
        "example.com",
        "127.0.0.1",
        "10.0.0.1",
        "[::1]",
    ),
    *(
        "[fd00::1]",
        "[::ffff:127.0.0.1]",
        "2130706433",
        "0x7f.1",
        "0177.1",
        "localhost",
        "metadata.google.internal",
    ),
    *("169.254.169.254", "[fe80::1%25lo]", "é.example.com", "xn--e1a.example.com", "%6c%6f"),
    *(
        ":8443",
        ":443",
        ":0",
        ":65536",
        ":",
        "@",
        "user:pw@",
        "#",
        "?",
        "&",
        "=",
        "\\",
        " ",
        "\n",
        "\r\n",
        "\t",
        "\0",
    ),
    *(
        "/",
        "/a",
        "//",
        "/..",
        "/.",
        "/%2e%2e",
        "/%2f",
        "/{node}",
        "{interface}",
        "{id}",
        "{",
        "}",
        "{x}",
        "%",
        "%2",
        "%zz",
    ),
    *(
        "sig=abc",
        "X-Amz-Signature=1",
        "X-Amz-SignedHeaders=host",
        "X-Amz-SignedHeaders=x-amz-acl",
        "é",
        "'",
        '"',
        "<",
    ),
)


def some_url(random: Random) -> str:
    """Something between a good URL and noise."""
    if random.random() < 0.6:
        host = random.choice(("a.example.com", "x:8443", "10.0.0.1", "[fd00::1]:8443", "127.0.0.1:80"))
        path = random.choice(("/a", "/a/{node}", "/a.{interface}", "/{id}?b=c"))
        text = f"{random.choice(('https', 'http'))}://{host}{path}"
    else:
        text = ""
    for _ in range(random.choice((0, 1, 1, 2, 8))):
        at = random.randrange(len(text) + 1)
        text = text[:at] + random.choice(_PIECES) + text[at + random.choice((0, 0, 1)) :]
    return text * 500 if random.random() < 0.001 else text[: LONGEST_URL + 1]


def some_text(random: Random) -> str:
    """A name of a node or an interface, or what could be one."""
    return "".join(random.choices("a0._-~/\\%?#&{}\0\n é\udc80:@", k=random.randrange(6)))


def some_addresses(random: Random) -> list[str]:
    """What a name may mean."""
    return random.choices(
        (
            "1.1.1.1",
            "8.8.8.8",
            "2606:4700::1",
            "127.0.0.1",
            "10.0.0.1",
            "10.0.0.2",
            "169.254.169.254",
            "::1",
            "fd00::1",
        ),
        k=random.choice((0, 1, 1, 1, 2, 3)),
    )
