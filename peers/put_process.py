"""
The process of L{peers.put.PutServer}.

For each request it reads from a file how to behave. What it received it writes to files in the same
directory: C{N.json}, and C{N.bin} with the body; and C{stored}, with the numbers of the files that it has.

usage: put_process.py DIRECTORY ADDRESS PORT SIGNATURE CERTIFICATE KEY
"""

from __future__ import annotations

import hmac
import json
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cloudshark_process import Handler, Limited, Server

_CHUNK_BYTES = 64 << 10
_REFUSED = (
    '<?xml version="1.0"?><Error><Code>AuthenticationFailed</Code><Message>Server failed to authenticate the'
    " request. The query was {query}</Message></Error>"
)


class PutHandler(Handler):
    """One connection."""

    server: PutStore

    def do_PUT(self) -> None:
        """A file."""
        behaviour = self.server.behave()
        record: dict[str, Any] = {
            "time": time.monotonic(),
            "method": self.command,
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
        }
        length = int(self.headers.get("Content-Length", "-1"))
        if length < 0:
            self._reply(411, b"Content-Length is required")
            return
        kind = behaviour["kind"]
        if kind == "reset":
            self.rfile.read(min(length, behaviour["after_bytes"]))
            self.server.keep(record, b"")
            self._reset()
            return
        body = Limited(self.rfile, length, behaviour.get("bytes_per_second"))
        data = b"".join(iter(lambda: body.read(_CHUNK_BYTES), b""))
        number = self.server.keep({**record, "is_whole": len(data) == length}, data)
        if kind == "hang":
            self.server.stopped.wait()
        elif kind == "flood":
            self._flood(behaviour["interim"])
        elif kind == "answer":
            self._reply(behaviour["status"], behaviour["body"].encode(), headers=behaviour["headers"])
        elif len(data) == length:
            self._store(number, behaviour)

    def do_POST(self) -> None:
        """The same: see L{do_PUT}."""
        self.do_PUT()

    def _store(self, number: int, behaviour: Mapping[str, Any]) -> None:
        url = urlsplit(self.path)
        [signature] = parse_qs(url.query).get("sig", [""])
        if not hmac.compare_digest(signature, self.server.token):
            self._reply(403, _REFUSED.format(query=url.query.replace("&", "&amp;")).encode())
            return
        is_new = self.server.store(url.path + self._name(), number)
        if behaviour.get("forget"):
            self._reset()
            return
        self._reply(
            behaviour.get("status", 201 if is_new else 204),
            b"",
            headers=behaviour.get("headers", {}),
            bytes_per_second=behaviour.get("answer_bytes_per_second"),
        )

    def _name(self) -> str:
        """What a POST adds to the path: the name of the file, or else its key."""
        if self.command != "POST":
            return ""
        named = re.search('filename="([^"]*)"', self.headers.get("Content-Disposition", ""))
        return "/" + (named[1] if named else self.headers.get("Idempotency-Key", ""))

    def _flood(self, interim: bool) -> None:
        self.close_connection = True
        if not interim:
            self.wfile.write(b"HTTP/1.1 201 Created\r\nX-Endless: ")
        while not self.server.stopped.is_set():
            self.wfile.write(b"HTTP/1.1 102 Processing\r\n\r\n" * 100 if interim else b"x" * _CHUNK_BYTES)

    def _reply(
        self,
        status: int,
        body: bytes,
        *,
        headers: Mapping[str, str] = MappingProxyType({}),
        bytes_per_second: float | None = None,
    ) -> None:
        head = f"HTTP/1.1 {status} Answer\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        if status != 204:
            head += f"Content-Length: {len(body)}\r\n"
        raw = head.encode() + b"\r\n" + body
        if bytes_per_second is None:
            self.wfile.write(raw)
            return
        for byte in raw:
            self.wfile.write(bytes([byte]))
            time.sleep(1 / bytes_per_second)


class PutStore(Server):
    """The server, and its directory."""

    handler = PutHandler

    def keep(self, record: dict[str, Any], data: bytes) -> int:
        """Record what was received, atomically, and return its number."""
        with self._lock:
            number = self._received
            self._received += 1
        (self._directory / f"{number}.bin").write_bytes(data)
        draft = self._directory / f"{number}.draft"
        draft.write_text(json.dumps(record))
        draft.rename(self._directory / f"{number}.json")
        return number

    def store(self, path: str, number: int) -> bool:
        """Store a file. Return whether it is new."""
        with self._lock:
            stored = self._directory / "stored"
            paths = json.loads(stored.read_text()) if stored.exists() else {}
            is_new = path not in paths
            draft = self._directory / "stored.draft"
            draft.write_text(json.dumps({**paths, path: number}))
            draft.rename(stored)
            return is_new


if __name__ == "__main__":
    directory, address, port, *rest = sys.argv[1:]
    PutStore(Path(directory), (address, int(port)), *rest).serve_forever()
