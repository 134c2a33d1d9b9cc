"""The installed daemon: twistd in a process of its own."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from peers.certificates import Authority
from peers.nursery import fork_daemon, has_daemons
from peers.process import OwnProcess, free_port, pause_seconds
from peers.wire import Wire

_PATIENCE_SECONDS = 180.0

# What is sent at once, at most, to a capture that may not be read for seconds: an eighth of the default ring,
# in which a packet takes up to so much more than it has bytes (tpacket_rcv() of Linux). They are so few that
# they are soon sent, as each read time-out that passes takes a block of the ring for itself.
_BURST_BYTES = 1 << 20
_BURST_PACKETS = 1000
_RING_HEADER_BYTES = 104

# What is shown of a capture that is waited for in vain: lost packets explain much.
_SHOWN = ("state", "packets", "received", "dropped")


def _bursts(frames: Sequence[bytes]) -> Iterator[list[bytes]]:
    burst: list[bytes] = []
    size = 0
    for frame in frames:
        size += len(frame) + _RING_HEADER_BYTES
        if burst and (size > _BURST_BYTES or len(burst) == _BURST_PACKETS):
            yield burst
            burst, size = [], len(frame) + _RING_HEADER_BYTES
        burst.append(frame)
    yield burst


class Daemon:
    """
    C{twistd -n pcapsvc} with a configuration of its own, in which HTTP is always a source.

    @ivar node: the node's name.
    @ivar captures: the local directory that captures are written to.
    @ivar port: the port of HTTP, on 127.0.0.1.
    """

    def __init__(
        self,
        configuration: str = "",
        *,
        node: str = "node-1",
        general: str = "",
        captures: Path | None = None,
        retain_bytes: int = 0,
        authority: Authority | None = None,
        has_socket: bool = False,
    ) -> None:
        """
        @param configuration: more sections of the TOML file, after C{[general]} and C{[http]}.
        @param general: more keys of C{[general]}. The rate and the age of requests are unlimited unless
            C{maxrequestrate} and C{maxrequestage} are among them: on a busy machine some requests take the
            time of many, and a message may pass from node to node for a while.
        @param retain_bytes: how much memory captures may occupy after their last delivery: by default, none,
            so that tests find out what is left open.
        @param captures: the local directory, which is created; L{None} for one of its own.
        @param authority: issues a certificate for HTTP over TLS; L{None} is without TLS.
        @param has_socket: whether HTTP listens on a unix socket instead.
        """
        for key in ("maxrequestrate", "maxrequestage"):
            if key not in general:
                general += f"\n{key} = 0"
        self._process = OwnProcess("daemon")
        self.node = node
        self.port = free_port()
        self.captures = captures or self._process.directory / "captures"
        self.captures.mkdir()
        self._tls: ssl.SSLContext | None = None
        self._socket = self._process.directory / "http.sock" if has_socket else None
        listen = f"tcp:{self.port}:interface=127.0.0.1" if self._socket is None else f"unix:{self._socket}"
        if authority is not None:
            ours = authority.issue("daemon")
            listen = f"ssl:{self.port}:interface=127.0.0.1:privateKey={ours.key}:certKey={ours.certificate}"
            self._tls = ssl.create_default_context(cafile=str(authority.file))
        self._file = self._process.directory / "pcapsvc.toml"
        self._file.write_text(
            f"[general]\nnodename = {json.dumps(node)}\nwritelocal = true\n"
            f"localdir = {json.dumps(str(self.captures))}\n{general}\n"
            f"[http]\nlisten = {json.dumps(listen)}\nretainsize = {retain_bytes}\n{configuration}\n"
        )

    @property
    def log(self) -> str:
        """
        Everything it has logged so far. It writes its log in the background: what it has done may be logged
        after it has answered.
        """
        return self._process.log

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def api(self) -> str:
        """Where its HTTP API is, as C{pcapctl --via} names it."""
        if self._socket is not None:
            return f"unix:{self._socket}"
        return f"http{'' if self._tls is None else 's'}://localhost:{self.port}"

    def descriptors(self) -> set[str]:
        """Its open descriptors, as C{NUMBER: TARGET}."""
        directory = Path(f"/proc/{self.pid}/fd")
        found = set()
        for path in directory.iterdir():
            with suppress(FileNotFoundError):
                found.add(f"{path.name}: {path.readlink()}")
        return found

    def start(self, *wrapper: str, is_cold: bool = False) -> None:
        """
        Start it, and wait until it answers over HTTP.

        @param wrapper: a prefix of the command, such as C{ip netns exec NAME}.
        @param is_cold: whether it must import everything itself, as it does for users, even if there is a
            nursery.
        """
        twistd = Path(sys.executable).with_name("twistd")
        self._process.start(
            [*wrapper, str(twistd), "-n", "--pidfile=", "pcapsvc", "--config", str(self._file)],
            self._answers,
            start=None if wrapper or is_cold or not has_daemons() else fork_daemon,
        )

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._process.signal(number)

    def wait(self) -> int:
        """Wait until it has exited. Return its exit status."""
        return self._process.wait(_PATIENCE_SECONDS)

    def restart(self) -> None:
        """End it, if it runs, and start it again with the same configuration."""
        self._process.end()
        self.start()

    def end(self) -> None:
        """End it in its own time, so that it can be started again."""
        self._process.signal(signal.SIGTERM)
        self.wait()
        self._process.end()

    def stop(self) -> None:
        """End it, and remove its directory."""
        self._process.clean_up()

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
        """Send a request. Return the status and the decoded JSON of the answer."""
        patience = _PATIENCE_SECONDS
        connection = (
            http.client.HTTPConnection("127.0.0.1", self.port, timeout=patience)
            if self._tls is None
            else http.client.HTTPSConnection("localhost", self.port, timeout=patience, context=self._tls)
        )
        if self._socket is not None:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(patience)
        try:
            if self._socket is not None:
                connection.sock.connect(str(self._socket))
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def capture(self, **message: Any) -> str:
        """Request one capture over HTTP. Return its id."""
        status, answer = self.request(
            "POST", "/captures", json.dumps({"node": self.node, **message}).encode()
        )
        assert status == 202, (status, answer)
        (capture,) = answer["captures"]
        identifier: str = capture["id"]
        return identifier

    def done(self, capture_id: str) -> dict[str, Any]:
        """Wait until a capture has ended and every delivery is decided. Return its last state."""
        return self._until_state(capture_id, lambda state: state["state"] in ("done", "failed"), "the end")

    def read(self, capture_id: str) -> dict[str, Any]:
        """
        Wait until a capture has read all packets that have been sent, and end it. Return its last state.

        The kernel counts packets when they arrive, whether it has room for them or not; on C{lo}, twice.
        """
        self._until_read(capture_id)
        status, answer = self.request("DELETE", f"/captures/{capture_id}")
        assert status in (200, 409), (status, answer)
        return self.done(capture_id)

    def send(self, wire: Wire, frames: Sequence[bytes], capture_id: str) -> None:
        """
        Send frames to a capture that is to have all of them, however long nobody runs this daemon in the
        meantime: so many at once as the default ring surely holds, and the next ones when those are read.
        """
        for burst in _bursts(frames):
            wire.send(burst)
            self._until_read(capture_id)

    def logged(self, words: str) -> str:
        """Wait until a line that contains C{words} is logged. Return the line."""
        return self.until(
            lambda: next((line for line in self.log.splitlines() if words in line), None), repr(words)
        )

    def logged_times(self, words: str, count: int) -> int:
        """Wait until C{words} are logged so many times, at least. Return how many times they are."""
        found: int = self.until(
            lambda: times if (times := self.log.count(words)) >= count else None, f"{count} times {words!r}"
        )
        return found

    def until(self, look: Callable[[], Any], what: str | Callable[[], str]) -> Any:
        """
        Wait until C{look} returns something, and return it. Fail with the log if it takes too long.

        @param what: what is waited for; or what says so then.
        """
        began = time.monotonic()
        while (found := look()) is None:
            waited = time.monotonic() - began
            if waited > _PATIENCE_SECONDS:
                words = what if isinstance(what, str) else what()
                raise AssertionError(f"timed out waiting for {words}:\n{self.log}")
            time.sleep(pause_seconds(waited))
        return found

    def file_of(self, capture_id: str) -> Path:
        """The local file of a capture."""
        (path,) = self.captures.glob(f"[!.]*-{capture_id}.*")
        return path

    def _answers(self) -> bool:
        # That the port accepts connections is not enough: it listens before the reactor runs.
        try:
            self.request("GET", "/captures/none")
        except OSError:
            return False
        return True

    def _until_read(self, capture_id: str) -> None:
        def is_read(state: dict[str, Any]) -> bool:
            is_running = state["state"] == "capturing" and state["received"] is not None
            return not is_running or state["packets"] + state["dropped"] >= state["received"]

        self._until_state(capture_id, is_read, "what is in the ring to be read")

    def _until_state(
        self, capture_id: str, is_so: Callable[[dict[str, Any]], bool], what: str
    ) -> dict[str, Any]:
        """Wait until the state of a capture is so, and return it. A failure shows what its last state was."""
        state: dict[str, Any] = {}

        def look() -> dict[str, Any] | None:
            nonlocal state
            status, state = self.request("GET", f"/captures/{capture_id}")
            assert status == 200, (status, state)
            return state if is_so(state) else None

        def words() -> str:
            last = ", ".join(f"{key}: {state.get(key)}" for key in _SHOWN)
            return f"{what}, of capture {capture_id} ({last})"

        found: dict[str, Any] = self.until(look, words)
        return found
