"""The URLs that requests supply."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.core.allowed_hosts import parse_pattern
from pcapsvc.core.errors import RequestRejected
from pcapsvc.core.http_url import LONGEST_URL, BadUrl
from pcapsvc.core.plan import NodeView, plan_captures
from pcapsvc.core.put_url import (
    PutUrlOptions,
    parse_put_url,
    put_url_problems,
    several_captures_problem,
)
from pcapsvc.core.request import CaptureRequest, OptionFields, RequestBounds, parse_request

SIGNED = (
    "https://bucket.s3.eu-west-1.amazonaws.com/in%20box/a+b;c=1.pcap?X-Amz-Algorithm=AWS4-HMAC-SHA256"
    "&X-Amz-Credential=AKIAEXAMPLE%2F20260101%2Feu-west-1%2Fs3%2Faws4_request&X-Amz-Date=20260101T000000Z"
    "&X-Amz-Expires=3600&X-Amz-SignedHeaders=host&X-Amz-Signature=0123456789abcdef"
)
AZURE = "https://account.blob.core.windows.net/box/{node}-{interface}-{id}.pcap?sv=2024-11-04&sr=c&sp=cw&sig=abc%3D"
BAD = {
    "must be a URL in ASCII": (
        "",
        "x",
        "//host/a",
        "host/a?X-Amz-Signature=1",
        "https:/host/a",
        "https://host/ä",
        "https://host/a b",
        "https://host/a\nb",
        "https://host/" + "a" * LONGEST_URL,
    ),
    "must begin with https://": ("ftp://host/a", "file:///etc/passwd", "gopher://host/a", "s3://bucket/a"),
    "must have no fragment": ("https://host/a#b", "https://host/a?b#"),
    "must have no user name": ("https://user@host/a", "https://user:pw@host/a", "https://a@b@host/a"),
    "must have a port from 1": (
        "https://host:/a",
        "https://host:0/a",
        "https://host:65536/a",
        "https://host:x/a",
    ),
    "has a host that is not valid": (
        "https:///a",
        "https://host./a",
        "https://127.1/a",
        "https://0x7f000001/a",
        "https://2130706433/a",
        "https://0177.0.0.1/a",
        "https://[::1%25lo]/a",
        "https://[::1/a",
        "https://::1/a",
        "https://a%2eb/a",
        "https://ho{id}st/a",
        "https://host\\other/a",
    ),
    "must have a path": (
        "https://host",
        "https://host/",
        "https://host/a/",
        "https://host//a",
        "https://host?a",
    ),
    "has a character in its path": (
        "https://host/a%2",
        "https://host/%zz",
        "https://host/a|b",
        "https://host/a\\b",
    ),
    "has a character in its query": (
        "https://host/a?b'c",
        'https://host/a?"',
        "https://host/a?{id}",
        "https://host/a?<",
    ),
    "may have the placeholders": (
        "https://host/{x}",
        "https://host/{}",
        "https://host/{id",
        "https://host/id}",
        "https://host/{{id}}",
        "https://host/{ID}",
    ),
    "must have no part of its path": (
        "https://host/../a",
        "https://host/a/./b",
        "https://host/a/%2e%2E/b",
        "https://host/a/.%2e",
    ),
}


def bounds_with(**checks: Any) -> RequestBounds:
    """The bounds of requests that may have a URL."""
    return RequestBounds(
        max_packets=1,
        max_bytes=1000,
        max_timeout_seconds=1,
        max_duration_seconds=1,
        max_snap_length=1,
        max_filter_characters=1,
        options=(OptionFields(destination="puturl", structure=PutUrlOptions, **checks),),
    )


class PutUrlTests(SynchronousTestCase):
    """L{parse_put_url}."""

    def test_signed(self) -> None:
        """The path and the query stay as they are, byte for byte."""
        url = parse_put_url(SIGNED)
        self.assertEqual(
            (url.scheme, url.host, url.port), ("https", "bucket.s3.eu-west-1.amazonaws.com", 443)
        )
        path = url.filled_path(node="n", interface="i", id="1")
        self.assertEqual(f"https://{url.authority}{url.target(path)}", SIGNED)
        self.assertNotIn("0123456789abcdef", repr(url))

    def test_authority(self) -> None:
        """The host and the port are as servers expect them."""
        for text, authority in (
            ("HTTPS://Host:443/a", "host"),
            ("https://host:8443/a", "host:8443"),
            ("http://host:80/a", "host"),
            ("http://host:443/a", "host:443"),
            ("https://[2001:DB8::1]:8443/a", "[2001:db8::1]:8443"),
            ("https://192.0.2.1/a", "192.0.2.1"),
        ):
            self.assertEqual(parse_put_url(text).authority, authority)

    def test_targets(self) -> None:
        """Whatever a path may have is sent as it is."""
        for target in (
            "/a;",
            "/a;b=1;c",
            "/a?",
            "/a?b?c/../d",
            "/a//b",
            "/%7e~%2F",
            "/a:@&=+$,b",
            "/...",
            "/.a/a.",
        ):
            url = parse_put_url(f"https://host{target}")
            self.assertEqual(url.target(url.filled_path(node="", interface="", id="")), target)

    def test_bad(self) -> None:
        """Anything else breaks a rule, which shows nothing of it."""
        for rule, texts in BAD.items():
            for text in texts:
                error = self.assertRaises(BadUrl, parse_put_url, text)
                self.assertTrue(str(error).startswith(rule), (text, str(error)))

    def test_placeholders(self) -> None:
        """Placeholders are filled in, percent-encoded, and can't end a part of the path."""
        url = parse_put_url("https://host/{node}/x-{interface}-{id}.pcap?a=b")
        for node, interface, path in (
            ("web-1", "eth0.100", "/web-1/x-eth0.100-f00.pcap"),
            ("web 1", "é@?#&", "/web%201/x-%C3%A9%40%3F%23%26-f00.pcap"),
            ("..", "..", "/__/x-__-f00.pcap"),
            (".", "a/../b", "/_/x-a_.._b-f00.pcap"),
            (".hidden", "%2e", "/_hidden/x-_2e-f00.pcap"),
            ("a\\b\r\n", "{id}", "/a_b__/x-%7Bid%7D-f00.pcap"),
            ("", "\udc80", "/_/x-%3F-f00.pcap"),
        ):
            self.assertEqual(url.filled_path(node=node, interface=interface, id="f00"), path)


class ProblemTests(SynchronousTestCase):
    """L{put_url_problems}, and the field in a request."""

    def problems(self, url: Any, *patterns: str, insecure: bool = False) -> str:
        found = put_url_problems({"puturl": url}, patterns=[*map(parse_pattern, patterns)], insecure=insecure)
        return "; ".join(map(str, found))

    def test_allowed(self) -> None:
        """The host must match a pattern; without any, no URL is accepted."""
        self.assertEqual(self.problems(SIGNED, "*.amazonaws.com"), "")
        self.assertEqual(self.problems(AZURE, "x.example", "*.blob.core.windows.net"), "")
        self.assertIn("puturl.allow is empty", self.problems(SIGNED))
        self.assertIn("must name a host and port", self.problems(SIGNED, "*.blob.core.windows.net"))
        self.assertEqual([*put_url_problems({}, patterns=[])], [])

    def test_http(self) -> None:
        """http:// must be permitted; this is reported together with the host."""
        problems = self.problems("http://host/a", "other")
        self.assertIn("must begin with https:// on this node; puturl: must name a host", problems)
        self.assertEqual(self.problems("http://host/a", "host", insecure=True), "")

    def test_signed_headers(self) -> None:
        """A signature over headers whose values only the signer knows can't be met."""
        for names, other in (
            ("host", None),
            ("content-type%3Bhost", None),
            ("content-length;content-type;host", None),
            ("host%3Bx-amz-acl%3Bx-amz-meta-tags", "(x-amz-acl, x-amz-meta-tags)"),
            ("content-md5;host", "(content-md5)"),
            ("host;s3cr3t_s3cr3t", "(…)"),
        ):
            problems = self.problems(SIGNED.replace("=host&", f"={names}&"), "*")
            if other is None:
                self.assertEqual(problems, "")
            else:
                self.assertIn(other, problems)

    def test_placeholders_in_a_signed_path(self) -> None:
        """S3 and Google sign the path, so there can be no placeholders in it."""
        for query in ("X-Amz-Signature=1", "X-Goog-Signature=1", "AWSAccessKeyId=a&Signature=1&Expires=1"):
            self.assertIn("its signature covers the path", self.problems(f"https://host/{{id}}?{query}", "*"))
            self.assertEqual(self.problems(f"https://host/a?{query}", "*"), "")

    def test_never_shown(self) -> None:
        """No problem shows any of the query, whatever is wrong; not even if it isn't a URL."""
        bounds = bounds_with(check=partial(put_url_problems, patterns=(), insecure=False))
        self.assertEqual(bounds.secret_fields, ("puturl",))
        secret = "s3cr3ts3cr3t"
        for value in (
            f"host/a?sig={secret}",
            f"https://host/a?sig={secret}",
            f"https://host/a?sig={secret} ",
            [f"https://host/a?sig={secret}"],
            {f"https://host/a?sig={secret}": 1},
            f"https://host/{'a' * 5000}?sig={secret}",
        ):
            for key in ("puturl", "PutURL", "put_url", "endpoint", f"https://host/?{secret}"):
                body = json.dumps({"node": "n", "interface": ["i"], key: value}).encode()
                error = self.assertRaises(RequestRejected, parse_request, body, bounds)
                self.assertNotIn("s3cr3t", str(error))

    def test_several(self) -> None:
        """One URL for several interfaces needs a placeholder that tells their captures apart."""
        for url, is_enough in (
            (SIGNED, False),
            ("https://host/{node}.pcap", False),
            ("https://host/{interface}", True),
            ("https://host/{id}", True),
        ):
            self.assertEqual([*several_captures_problem({"puturl": url}, 1)], [])
            self.assertEqual([*several_captures_problem({"puturl": url}, 2)] == [], is_enough)

    def test_several_by_alias(self) -> None:
        """Interfaces are counted as the node knows them."""
        bounds = bounds_with(check_several=several_captures_problem)
        node = NodeView(
            name="n",
            bounds=bounds,
            default_timeout_seconds=1,
            snap_length=1,
            interfaces_by_alias={"uplink": ("eth0", "eth1")},
        )
        request = CaptureRequest(alias=("uplink",), options={"puturl": {"puturl": "https://host/a"}})
        error = self.assertRaises(RequestRejected, plan_captures, request, node, "test", now=0.0)
        self.assertIn("puturl: must have {interface} or {id}", str(error))
        plan_captures(CaptureRequest(alias=("uplink",)), node, "test", now=0.0)
