"""What pcapctl says, and exits with, if nodes refuse or can't be reached."""

from __future__ import annotations

import contextlib
import io
import json
import os
import threading
from typing import Any

from twisted.trial import unittest

from pcapsvc.client.api import ApiProblem, NodeApi
from pcapsvc.client.main import main
from pcapsvc.client.status import ClientError, ExitStatus, NoAnswer

_DETAIL = "This needs a token with the role read"


class RefusalTests(unittest.SynchronousTestCase):
    """One node, whose API answers each request in the same way."""

    def setUp(self) -> None:
        """No configuration."""
        self.patch(os, "environ", {**os.environ, "XDG_CONFIG_HOME": "/nonexistent"})
        self.asked: list[str] = []

    def run_main(self, *words: str, is_refused: bool) -> tuple[int, str, str]:
        """Run pcapctl: its status, and what it writes to standard output and to standard error."""

        def open_nothing(api: NodeApi, method: str, path: str, *_: Any, **__: Any) -> None:
            self.asked.append(f"{method} {path}")
            problem: ClientError = NoAnswer(f"{api.address}: Connection refused")
            raise ApiProblem(api.address, 403, {"detail": _DETAIL}) if is_refused else problem

        self.patch(NodeApi, "open", open_nothing)
        output, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            status = main(words)
        return status, output.getvalue(), errors.getvalue()

    def test_events(self) -> None:
        """If the events of a request can't be read, it is not sent, which is said."""
        for is_refused, status, words in (
            (True, ExitStatus.REJECTED, f"http://a:80 answered 403: {_DETAIL}"),
            (False, ExitStatus.NO_ANSWER, "http://a:80: Connection refused"),
        ):
            self.asked.clear()
            found = self.run_main("capture", "--via", "http://a", "-i", "lo", "--wait", is_refused=is_refused)
            expected = f"pcapctl: nothing was requested, as the events can't be read: {words}\n"
            self.assertEqual(found, (status, "", expected))
            self.assertEqual(self.asked, ["GET /events"])

    def test_interrupted(self) -> None:
        """If Ctrl-C is pressed before the node has answered, it may capture, and how to stop that is said."""

        def interrupt(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        self.patch(NodeApi, "open", interrupt)
        errors = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
            self.assertEqual(main(["capture", "--via", "http://a", "-i", "lo"]), ExitStatus.INTERRUPTED)
        self.assertRegex(errors.getvalue(), r": pcapctl stop --via http://a:80 --request [0-9a-f]{32}\n$")

    def test_watch(self) -> None:
        """A node that refuses to be watched has answered."""
        found = self.run_main("watch", "--api", "http://a", is_refused=True)
        expected = (ExitStatus.REJECTED, "", f"pcapctl: http://a:80 answered 403: {_DETAIL}\n")
        self.assertEqual(found, expected)

    def test_at_once(self) -> None:
        """Of many nodes, one that doesn't answer doesn't keep the others from being asked for a capture."""
        is_asked = threading.Event()

        def call(api: NodeApi, *_: Any) -> Any:
            if api.address.host == "b":
                is_asked.set()
                return {"id": "x"}
            self.assertTrue(is_asked.wait(60.0))
            raise NoAnswer("a: timed out")

        self.patch(NodeApi, "call", call)
        with contextlib.redirect_stdout(io.StringIO()) as output:
            self.assertEqual(main(["show", "x", "--api", "http://a", "--api", "http://b"]), 0)
        self.assertEqual(json.loads(output.getvalue()), {"id": "x"})

    def test_tables(self) -> None:
        """If no node answers, there is no table, nor its heading."""
        for command in ("list", "nodes", "interfaces"):
            for is_refused, status in ((True, ExitStatus.REJECTED), (False, ExitStatus.NO_ANSWER)):
                found = self.run_main(command, "--api", "http://a", is_refused=is_refused)
                self.assertEqual(found[:2], (status, ""), command)
