"""Where others reach the API."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.web.settings import base_url


class BaseURLTests(SynchronousTestCase):
    """L{base_url} accepts what the paths of the API can be appended to."""

    def test_accepted(self) -> None:
        """A host, with or without port and path; a slash at the end is left out."""
        for given, expected in (
            ("https://host", "https://host"),
            ("http://192.0.2.1:8480/", "http://192.0.2.1:8480"),
            ("https://[2001:db8::1]:8443", "https://[2001:db8::1]:8443"),
            ("https://proxy.example.org/nodes/a/", "https://proxy.example.org/nodes/a"),
        ):
            self.assertEqual(base_url(given), expected)

    def test_rejected(self) -> None:
        """Whatever else: no scheme or another, credentials, a query, a port that is none."""
        for given in (
            "host:8480",
            "ftp://host",
            "https://",
            "https://user:secret@host",
            "https://host/?a=b",
            "https://host/#a",
            "https://host:0",
            "https://host:port",
            "https://host name",
            "https://[::1",
        ):
            with self.assertRaises(ValueError, msg=given):
                base_url(given)
