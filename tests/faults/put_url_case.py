"""A house that puts captures to the URLs of their requests."""

from __future__ import annotations

import stat

from twisted.internet import reactor

from pcapsvc.core.allowed_hosts import parse_pattern
from pcapsvc.destinations.puturl.destination import PutUrlDestination
from pcapsvc.interfaces.delivery import IDestination
from pcapsvc.interfaces.threads import RunInThread
from tests.faults.house import House
from tests.faults.http_destination import HttpDestinationCase


class PutUrlCase(HttpDestinationCase):
    """URLs, over TLS."""

    signature: str | None = None

    def make(self, run_in_thread: RunInThread) -> IDestination:
        port = self.server.port
        patterns = (f"{self.server.host}:{port}", f"127.0.0.1:{port}", f"[::1]:{port}")
        return PutUrlDestination(
            reactor,
            run_in_thread=run_in_thread,
            patterns=[*map(parse_pattern, patterns)],
            insecure=False,
            ca_file=str(self.ca_file),
            node="web1",
        )

    def options(self, name: str) -> dict[str, str]:
        """Each has a URL of its own."""
        url = self.server.url(f"dav/{name.partition('-')[0]}-{{id}}.pcap")
        return {"puturl": url.replace(self.server.signature, self.signature or self.server.signature)}

    def files(self) -> dict[str, bytes]:
        """By the node in the URL."""
        return {
            path.removeprefix("/dav/").partition("-")[0]: data for path, data in self.server.files().items()
        }

    def assert_secret_kept(self, house: House) -> None:
        """The URL is in the spool as it was, for this user only; its query is in nothing that is reported."""
        signature = self.signature or self.server.signature
        [manifest] = (self.path / "spool").glob("*/manifest.json")
        self.assertIn(signature, manifest.read_text())
        self.assertEqual(stat.S_IMODE(manifest.stat().st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(manifest.parent.stat().st_mode), 0o700)
        self.assertNotIn(signature, repr(house.reporter.data))
