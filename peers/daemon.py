"""The daemon itself, as it is installed: twistd in a process of its own."""

from __future__ import annotations

import http.client
import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from peers.process import OwnProcess, free_port

_PATIENCE_SECONDS = 60.0


class Daemon:
    """
    C{twistd -n pcapsvc} with a configuration of its own, HTTP among its sources.

    @ivar node: the node's name.
    @ivar captures: the local folder, where captures are written to.
    @ivar port: of HTTP, on 127.0.0.1.
    """

    def __init__(self, configuration: str = "", *, node: str = "node-1", general: str = "") -> None:
        """
        @param configuration: sections of the TOML file beside C{[general]} and C{[http]}.
        @param general: more keys of C{[general]}. Unless one is there, requests have no bound: on a busy
            machine some take the time of many.
        """
        if "maxrequestrate" not in general:
            general += "\nmaxrequestrate = 0"
        self._process = OwnProcess("daemon")
        self.node = node
        self.port = free_port()
        self.captures = self._process.folder / "captures"
        self.captures.mkdir()
        self._file = self._process.folder / "pcapsvc.toml"
        self._file.write_text(
            f"[general]\nnodename = {json.dumps(node)}\nwritelocal = true\n"
            f"localdir = {json.dumps(str(self.captures))}\n{general}\n"
            f'[http]\nlisten = "tcp:{self.port}:interface=127.0.0.1"\n{configuration}\n'
        )

    @property
    def log(self) -> str:
        """All that it logged."""
        return self._process.log

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def descriptors(self) -> set[str]:
        """Its open descriptors, each with what it is of."""
        folder = Path(f"/proc/{self.pid}/fd")
        found = set()
        for path in folder.iterdir():
            with suppress(FileNotFoundError):
                found.add(f"{path.name}: {path.readlink()}")
        return found

    def start(self, *wrapper: str) -> None:
        """
        Start it, and wait until it answers.

        @param wrapper: words before the command: C{ip netns exec NAME}.
        """
        twistd = Path(sys.executable).with_name("twistd")
        self._process.start(
            [*wrapper, str(twistd), "-n", "--pidfile=", "pcapsvc", "--config", str(self._file)],
            self._answers,
        )

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._process.signal(number)

    def wait(self) -> int:
        """Wait until it has ended. The exit status."""
        return self._process.wait(_PATIENCE_SECONDS)

    def stop(self) -> None:
        """End it, and take its folder away."""
        self._process.clean_up()

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
        """The status and the JSON of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def capture(self, **message: Any) -> str:
        """Ask for one capture by HTTP. Its id."""
        status, answer = self.request(
            "POST", "/captures", json.dumps({"node": self.node, **message}).encode()
        )
        assert status == 202, (status, answer)
        (capture,) = answer["captures"]
        identifier: str = capture["id"]
        return identifier

    def done(self, capture_id: str) -> dict[str, Any]:
        """Wait until a capture has ended and every destination has had its turn. Its last state."""
        return self.until(lambda: self._state_if(capture_id, ("done", "failed")), f"capture {capture_id}")

    def logged(self, words: str) -> str:
        """Wait until a line with these words is logged. The line."""
        return self.until(
            lambda: next((line for line in self.log.splitlines() if words in line), None), repr(words)
        )

    def until(self, look: Callable[[], Any], what: str) -> Any:
        """Look until there is something. What it is; where it is waited for in vain, the log is told."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while (found := look()) is None:
            if time.monotonic() > deadline:
                raise AssertionError(f"waited for {what} in vain:\n{self.log}")
            time.sleep(0.02)
        return found

    def file_of(self, capture_id: str) -> Path:
        """The local file of a capture."""
        (path,) = self.captures.glob(f"*-{capture_id}.pcap")
        return path

    def _answers(self) -> bool:
        # A port that can be connected to is no sign yet: it listens before the reactor runs.
        try:
            self.request("GET", "/captures/none")
        except OSError:
            return False
        return True

    def _state_if(self, capture_id: str, states: tuple[str, ...]) -> dict[str, Any] | None:
        status, state = self.request("GET", f"/captures/{capture_id}")
        assert status == 200, (status, state)
        return state if state["state"] in states else None
