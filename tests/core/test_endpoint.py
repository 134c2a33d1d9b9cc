"""The address of an S3-compatible service."""

from __future__ import annotations

from twisted.trial import unittest

from pcapsvc.core.endpoint import EndpointError, endpoint_url
from tests.examples import given
from tests.examples import strategies as st

GOOD = {
    "s3.amazonaws.com": "https://s3.amazonaws.com",
    "https://s3.amazonaws.com": "https://s3.amazonaws.com",
    "https://s3.amazonaws.com/": "https://s3.amazonaws.com",
    "http://minio:9000": "http://minio:9000",
    "minio:9000": "https://minio:9000",
    "object_store": "https://object_store",
    "S3.Example.": "https://s3.example.",
    "HTTP://Minio": "http://minio",
    "192.0.2.1:9000": "https://192.0.2.1:9000",
    "[::1]:9000": "https://[::1]:9000",
    "http://[2001:db8::1]": "http://[2001:db8::1]",
}
BAD = """
|https://|http:///x|ftp://host|file:///etc/passwd|//host|host/path|https://host/path|host?x|https://host?x=1
|host#x|user@host|https://user:secret@host|host:0|host:65536|host:-1|host:x|ho st|host\\x|-host|host-|.host
|https://https://host|[::1|::|[host]|gopher://host|https://ho\tst:x|http://%00|é.example
""".replace("\n", "").split("|")


class EndpointTests(unittest.SynchronousTestCase):
    """A host with or without a scheme and a port, and nothing else."""

    def test_good(self) -> None:
        """An endpoint has one spelling as a URL."""
        self.assertEqual({text: endpoint_url(text) for text in GOOD}, GOOD)

    def test_again(self) -> None:
        """The URL of a URL is the same."""
        for url in GOOD.values():
            self.assertEqual(endpoint_url(url), url)

    def test_bad(self) -> None:
        """Anything else is rejected by one rule."""
        for text in BAD:
            error = self.assertRaises(EndpointError, endpoint_url, text)
            self.assertTrue(str(error).startswith("must be HOST"), text)

    @given(st.text(max_size=30) | st.from_regex(r"https?://[a-z:@/\[\]%?#0-9.\\ ]{0,20}", fullmatch=True))
    def test_any_text(self, text: str) -> None:
        """Any text is either converted to a bare URL, or rejected."""
        try:
            url = endpoint_url(text)
        except EndpointError:
            return
        self.assertRegex(url, r"\Ahttps?://(\[[0-9a-f:.]+\]|[a-z0-9_.-]+|[0-9a-f:.]+)(:[0-9]{1,5})?\Z")
        self.assertEqual(endpoint_url(url), url)
