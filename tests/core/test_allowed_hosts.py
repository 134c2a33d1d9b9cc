"""Patterns of hosts."""

from __future__ import annotations

from ipaddress import ip_address

from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.core.allowed_hosts import BadHost, is_allowed_address, parse_host, parse_pattern

BAD_HOSTS = """
.|a.|a..b|-a|a-|a b|é.example|xn--é|2130706433|0x7f000001|0x7f.1|127.1|127.0.1|0177.0.0.1|127.0.0.01|0x
|1.2.3.4.5|1.2.3|256.1.1.1|a.b.0x7f|host.1|[::1|::1|[1.2.3.4]|[fe80::1%eth0]|[::g]|[]|[localhost]|a/b|a\\b|a@b|a:b|a%2eb|*|*.b|a*
""".replace("\n", "").split("|")
BAD_PATTERNS = """
.|*.|*..b|*a.b|a.*|**|*.*|a.*.b|*.1.2.3.4|https://a|a/b|a:0|a:65536|a:x|a:|*:|:443|*.a.|a.|é.b|10.0.0.0/8
|a b|::1:443x|fe80::1%eth0|[::1]:*x|127.1|*.127.1
""".replace("\n", "").split("|")


class HostTests(SynchronousTestCase):
    """L{parse_host}."""

    def test_names(self) -> None:
        """A name is in lower case."""
        for text, host in (
            ("S3.Amazonaws.COM", "s3.amazonaws.com"),
            ("localhost", "localhost"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("container_1", "container_1"),
            ("1a.b2", "1a.b2"),
        ):
            self.assertEqual(parse_host(text), host)

    def test_addresses(self) -> None:
        """An address is recognized in its usual notation."""
        for text in ("192.0.2.1", "0.0.0.0", "[::1]", "[2001:DB8:0::1]", "[::ffff:10.0.0.1]"):
            self.assertEqual(parse_host(text), ip_address(text.strip("[]")))

    def test_bad(self) -> None:
        """Anything else is neither, such as what a resolver would take for an address."""
        for text in ("", "a" * 64, ".".join(["a" * 60] * 5), *BAD_HOSTS):
            self.assertRaises(BadHost, parse_host, text)


class PatternTests(SynchronousTestCase):
    """L{HostPattern}."""

    def matches(self, pattern: str, host: str, port: int = 443, scheme: str = "https") -> bool:
        return parse_pattern(pattern).matches(parse_host(host), port, scheme)

    def test_names(self) -> None:
        """A name matches itself, and one with an asterisk what is below it, at any depth."""
        for pattern, host, expected in (
            ("store.example", "STORE.example", True),
            ("Store.Example", "store.example", True),
            ("store.example", "a.store.example", False),
            ("*.amazonaws.com", "s3.amazonaws.com", True),
            ("*.amazonaws.com", "b.s3.eu-west-1.amazonaws.com", True),
            ("*.amazonaws.com", "amazonaws.com", False),
            ("*.amazonaws.com", "evil-amazonaws.com", False),
            ("*.amazonaws.com", "s3.amazonaws.com.evil.example", False),
            ("*.amazonaws.com", "192.0.2.1", False),
            ("*", "anything.example", True),
            ("*", "192.0.2.1", True),
        ):
            self.assertEqual(self.matches(pattern, host), expected, (pattern, host))

    def test_addresses(self) -> None:
        """An address matches itself, whatever its spelling."""
        self.assertTrue(self.matches("192.0.2.1", "192.0.2.1"))
        self.assertTrue(self.matches("2001:db8::1", "[2001:DB8:0:0::1]"))
        self.assertTrue(self.matches("[2001:db8::1]:8443", "[2001:db8::1]", 8443))
        self.assertFalse(self.matches("192.0.2.1", "192.0.2.2"))
        self.assertFalse(self.matches("10.0.0.1", "[::ffff:10.0.0.1]"))

    def test_ports(self) -> None:
        """Without a port, only the usual one of the scheme matches."""
        for pattern, port, scheme, expected in (
            ("a.example", 443, "https", True),
            ("a.example", 80, "http", True),
            ("a.example", 80, "https", False),
            ("a.example", 8443, "https", False),
            ("a.example:8443", 8443, "https", True),
            ("a.example:8443", 443, "https", False),
            ("*.example:*", 22, "https", True),
            ("*:8443", 8443, "https", True),
            ("*:8443", 443, "https", False),
        ):
            self.assertEqual(self.matches(pattern, "a.example", port, scheme), expected, (pattern, port))

    def test_bad(self) -> None:
        """Anything else is rejected by one rule."""
        for text in ("", *BAD_PATTERNS):
            error = self.assertRaises(BadHost, parse_pattern, text)
            self.assertIn("must be HOST", str(error), text)


class AllowedAddressTests(SynchronousTestCase):
    """L{is_allowed_address}."""

    def allowed(self, address: str, *patterns: str, port: int = 443) -> bool:
        parsed = [*map(parse_pattern, patterns)]
        return is_allowed_address(parsed, ip_address(address), port=port, scheme="https")

    def test_public(self) -> None:
        """A public address is allowed."""
        self.assertTrue(self.allowed("1.1.1.1", "*.example"))

    def test_named(self) -> None:
        """Any other has to be named itself, with the port; no pattern of names is enough."""
        self.assertFalse(self.allowed("10.0.0.1", "*", "*.example", "10.0.0.2", "localhost:*"))
        self.assertTrue(self.allowed("10.0.0.1", "*", "10.0.0.1"))
        self.assertFalse(self.allowed("10.0.0.1", "10.0.0.1", port=8443))
        self.assertTrue(self.allowed("10.0.0.1", "10.0.0.1:8443", port=8443))
        self.assertTrue(self.allowed("::1", "::1"))
        self.assertFalse(self.allowed("::ffff:10.0.0.1", "10.0.0.1"))
