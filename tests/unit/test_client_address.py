"""The addresses that pcapctl is given, and whom it trusts with a token."""

from __future__ import annotations

from twisted.trial import unittest

from pcapsvc.client.address import (
    EVENTS,
    HttpAddress,
    KafkaAddress,
    RedisAddress,
    SqsAddress,
    read_address,
    read_api,
)
from pcapsvc.client.credentials import is_trusted
from pcapsvc.client.status import UsageProblem


class AddressTests(unittest.SynchronousTestCase):
    """URLs."""

    def test_valid(self) -> None:
        """Each kind, with the daemon's defaults."""
        redis = RedisAddress(host="h", port=6379, channel="capture", tls=False)
        for text, expected in (
            ("redis://h", redis),
            (
                "rediss://u:p%40ss@[::1]:1/a%20b",
                RedisAddress(host="::1", port=1, channel="a b", tls=True, username="u", password="p@ss"),
            ),
            ("kafka://h:9092", KafkaAddress(servers=("h:9092",), topic="capture", tls=False)),
            (
                "kafkas://u:p@a:1,b:2/t?sasl=scram-sha-256",
                KafkaAddress(
                    servers=("a:1", "b:2"),
                    topic="t",
                    tls=True,
                    username="u",
                    password="p",
                    mechanism="SCRAM-SHA-256",
                ),
            ),
            ("sqs:https://q.example/1/x", SqsAddress(url="https://q.example/1/x")),
            ("http://h", HttpAddress(host="h", port=80)),
            ("https://h:8443/", HttpAddress(host="h", port=8443, tls=True)),
            ("unix:/run/a.sock", HttpAddress(path="/run/a.sock")),
        ):
            self.assertEqual(read_address(text), expected)
        self.assertEqual(redis.events, RedisAddress(host="h", port=6379, channel=EVENTS, tls=False))

    def test_invalid(self) -> None:
        """Anything else is refused, and never repeated: it may have a password."""
        for text in (
            "",
            "h:1",
            "ftp://hunter2@h",
            "redis://",
            "redis://:hunter2@h:99999",
            "kafka://u:hunter2@h",
            "kafka://",
            "kafka://h:1/t?sasl=hunter2",
            "sqs:hunter2",
            "unix:hunter2",
            "http://hunter2@h",
            "http://h/hunter2",
            "http://h#hunter2",
            "http://h:0",
            "redis://h:0",
            "redis://u:hunter2/3@h",
            "redis://u:1/hunter2@h",
            "redis://u:1#hunter2@h",
            "redis://u:hunter2\u2100@h",
            "kafkas://u:1/hunter2@h:1",
            "sqs:https://u:hunter2@q.example/1/x",
            "http://hunter2 h",
            "redis://hunter2\x1bh",
            "kafka://hunter2 h:1",
            "sqs:http://hunter2\x00h/1",
            "sqs:https://h:99999/hunter2",
            "redis://h/hunter#2",
            "redis://h/c?sasl=hunter2",
            "kafka://h:1/t#hunter2",
            "kafka://h:1/t?mechanism=hunter2",
            "kafka://h:1/t?sasl=",
            "kafka://u:hunter2@h:1/t?sasl=",
            "kafka://h:1/t?sasl=SCRAM-SHA-256",
            "kafka://:hunter2@h:1/t",
        ):
            error = self.assertRaises(UsageProblem, read_address, text)
            self.assertNotIn("hunter2", str(error))
        self.assertRaises(UsageProblem, read_api, "redis://h")

    def test_shown(self) -> None:
        """An address is shown without its password."""
        for text in ("redis://u:hunter2@h/c", "kafka://u:hunter2@h:1/c"):
            address = read_address(text)
            self.assertNotIn("hunter2", f"{address} {address!r}")
        for text in ("redis://h:1/a%23b%20%C3%A9%40c", "kafka://h:1/a%3Fb"):
            self.assertEqual(str(read_address(text)), text)

    def test_again(self) -> None:
        """What an address is given with again leads to the same place, as the same user."""
        for text in (
            "rediss://a%40b:hunter2@h/c%23d",
            "redis://:hunter2@[::1]:7/c",
            "kafkas://u:hunter2@h:1,i:2/c%3Fd?sasl=scram-sha-256",
            "kafka://u@h:1",
            "sqs:https://h/1/q",
            "https://h",
            "unix:/a b",
        ):
            address = read_address(text)
            again = {**vars(read_address(address.option))}
            # It is given in another way.
            again |= {name: value for name, value in vars(address).items() if name == "password"}
            self.assertEqual(again, vars(address), text)
            self.assertNotIn("hunter2", address.option)

    def test_trusted(self) -> None:
        """A token is sent to what the user has named: in a pattern, an asterisk is within one label."""
        patterns = [str(read_api(text)) for text in ("https://*.example.org:8480", "http://web-*:80")]
        for text, expected in (
            ("https://web-1.example.org:8480", True),
            ("https://WEB-1.example.org:8480", True),
            ("http://web-17", True),
            ("http://web-1.example.org:8480", False),
            ("https://web-1.example.org", False),
            ("https://a.b.example.org:8480", False),
            ("https://example.org:8480", False),
            ("https://web-1.example.org.evil.net:8480", False),
            ("http://web-1.evil.net", False),
            ("unix:/run/a.sock", False),
        ):
            self.assertEqual(is_trusted(read_api(text), patterns), expected, text)
