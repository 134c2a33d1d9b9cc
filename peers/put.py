"""
An HTTPS server in its own process that stores what is put or posted to it, as WebDAV servers do, if the query
of the URL has the right signature.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers.certificates import LOOPBACK, Authority
from peers.process import OwnProcess, answers, free_port


@dataclass(frozen=True, kw_only=True)
class Received:
    """
    A request as the server received it.

    @ivar time: when its headers had arrived, in seconds of the monotonic clock.
    @ivar path: with the query.
    @ivar headers: by lower-case name.
    @ivar data: its body; empty if it was cut off.
    @ivar is_whole: whether all of the body arrived.
    """

    time: float
    method: str
    path: str
    headers: Mapping[str, str]
    data: bytes = b""
    is_whole: bool = False


Behaviour = dict[str, Any]


def store(**changes: Any) -> Behaviour:
    """Store the file: 201 if it is new, 204 if it replaces one."""
    return {"kind": "store", **changes}


def answer(status: int, body: str = "", **headers: str) -> Behaviour:
    """Read the body, store nothing, and answer; C{_} in the names of headers is C{-}."""
    return {
        "kind": "answer",
        "status": status,
        "body": body,
        "headers": {name.replace("_", "-"): value for name, value in headers.items()},
    }


def hang() -> Behaviour:
    """Read the body, and never answer."""
    return {"kind": "hang"}


def reset(after_bytes: int = 0) -> Behaviour:
    """Reset the connection within the body."""
    return {"kind": "reset", "after_bytes": after_bytes}


def forget() -> Behaviour:
    """Store the file, and reset the connection instead of answering."""
    return store(forget=True)


def drip(bytes_per_second: float) -> Behaviour:
    """Store the file, and answer slowly."""
    return store(answer_bytes_per_second=bytes_per_second)


def slow(bytes_per_second: float) -> Behaviour:
    """Read the body slowly, and store it."""
    return store(bytes_per_second=bytes_per_second)


def flood(interim: bool = False) -> Behaviour:
    """Read the body, and answer without end; if C{interim}, with interim responses."""
    return {"kind": "flood", "interim": interim}


class PutServer:
    """
    The server, on a free port.

    @ivar host: what URLs name it.
    @ivar port: its port.
    @ivar signature: what the parameter C{sig} must be for files to be stored.
    @ivar ca_file: the path of the authority's certificate, for clients to trust.
    """

    def __init__(
        self,
        *,
        signature: str = "s3cr3ts1gnature",
        hosts: tuple[str, ...] = LOOPBACK,
        address: str | None = None,
        wrapper: Sequence[str] = (),
    ) -> None:
        """
        @param hosts: whom its certificate is for, C{address} aside.
        @param address: where it listens, and its host; L{None} is 127.0.0.1, and C{localhost}.
        @param wrapper: a prefix of the command, such as C{ip netns exec NAME}.
        """
        self.host = address or "localhost"
        self._address = address or "127.0.0.1"
        self._wrapper = wrapper
        self._process = OwnProcess("put")
        self._directory = self._process.directory
        self.port = free_port()
        self.signature = signature
        authority = Authority(self._directory)
        self.ca_file: Path = authority.file
        self._certificate = authority.issue("put", hosts if address is None else (*hosts, address))
        self._serial = 0
        self.behave(store())

    def url(self, path: str, host: str | None = None) -> str:
        """The URL of a file, with the right signature."""
        return f"https://{host or self.host}:{self.port}/{path}?se=2030-01-01&sig={self.signature}"

    def start(self) -> None:
        """Start it, and wait until it accepts connections."""
        self._process.start(
            [
                *self._wrapper,
                sys.executable,
                str(Path(__file__).with_name("put_process.py")),
                *(str(self._directory), self._address, str(self.port), self.signature),
                *(str(self._certificate.certificate), str(self._certificate.key)),
            ],
            lambda: answers(self.port, self._address),
        )

    def end(self) -> None:
        """End it, so that it can be started again on the same port."""
        self._process.end()

    def stop(self) -> None:
        """End it for good."""
        self._process.clean_up()

    def behave(self, *behaviours: Behaviour) -> None:
        """Set how it answers: each behaviour is for one request, and the last one for all further ones."""
        self._serial += 1
        draft = self._directory / "behaviour.draft"
        draft.write_text(json.dumps({"serial": self._serial, "behaviours": behaviours}))
        draft.rename(self._directory / "behaviour")

    def requests(self) -> list[Received]:
        """The requests that it received, in order."""
        return [
            Received(**json.loads(file.read_text()), data=file.with_suffix(".bin").read_bytes())
            for file in sorted(self._directory.glob("*.json"), key=lambda file: int(file.stem))
        ]

    def files(self) -> dict[str, bytes]:
        """What it has stored, by the path without the query. A POST adds the name of the file, or its key."""
        paths = json.loads(stored.read_text()) if (stored := self._directory / "stored").exists() else {}
        return {path: (self._directory / f"{number}.bin").read_bytes() for path, number in paths.items()}
