"""Files that are still being saved when the wait for them ends."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from twisted.trial import unittest

from pcapsvc.client.fetching import Fetcher
from pcapsvc.client.status import ClientError, ExitStatus
from pcapsvc.client.streaming import Streamer
from pcapsvc.client.tally import Tally
from tests.unit import client_case as case


class DeadlineTests(unittest.SynchronousTestCase):
    """A node that sends nothing for as long as the test runs."""

    def setUp(self) -> None:
        """A capture that is delivered, and the names of nodes, which never become known."""
        ended = threading.Event()
        self.addCleanup(ended.set)

        def api(node: str, url: str | None) -> Any:
            ended.wait()
            raise OSError("the end")

        self.names: Any = SimpleNamespace(api=api)
        self.tally = Tally(case.REQUEST)
        for event in case.whole("web-1", "a"):
            self.tally.add(event, 1.0)
        self.assertEqual(self.tally.status(), ExitStatus.DELIVERED)

    def end(self, files: Any) -> None:
        """The deadline comes."""
        files.update(self.tally)
        self.assertTrue(files.is_busy())
        files.finish()
        files.close()
        [row] = self.tally.rows
        self.assertEqual(row.fetch_problem, "not finished at the deadline")
        self.assertEqual(self.tally.status(), ExitStatus.PARTLY)

    def test_fetched(self) -> None:
        """A file that isn't whole counts as not delivered, alone and as a part of another."""
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        for merged in (False, True):
            self.end(Fetcher(self.names, str(directory / "a.pcap"), merged=merged))
            self.assertEqual(list(directory.iterdir()), [])

    def test_streamed(self) -> None:
        """So does one of which not all is written."""
        self.end(Streamer(self.names, 1, lambda text: None))

    def test_no_threads(self) -> None:
        """If the system permits no more threads, nothing is shown live, and that is the error."""

        def refuse(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        self.patch(threading.Thread, "start", refuse)
        self.assertRaises(ClientError, Streamer(self.names, 1, lambda text: None).update, self.tally)
