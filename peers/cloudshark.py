"""An HTTPS server in its own process that accepts and searches uploads as CloudShark does."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from peers.certificates import Authority
from peers.process import OwnProcess, answers, free_port

# The states of a connection that its server has not closed (include/net/tcp_states.h): ESTABLISHED, SYN_RECV
# and CLOSE_WAIT.
_OPEN = ("01", "03", "08")


class Shown(Enum):
    """Which certificate the server presents."""

    GOOD = "good"
    WRONG_HOST = "wrong host"
    UNTRUSTED = "untrusted"


@dataclass(frozen=True, kw_only=True)
class Upload:
    """
    An upload as the server received it.

    @ivar time: when its headers had arrived, in seconds of the monotonic clock.
    @ivar path: the request's path, including the token.
    @ivar headers: the request's headers, by lower-case name.
    @ivar filename: the file's name; L{None} if the upload was cut off, or refused because it was malformed
        or had a wrong token.
    @ivar content_type: the file's media type.
    @ivar data: the file's content.
    @ivar fields: the other fields of the form: C{additional_tags}.
    @ivar taken: whether the server stored it as a capture, so that searches find it.
    @ivar refused: the status of the answer to a malformed upload; L{None} if it was well-formed.
    """

    time: float
    path: str
    headers: Mapping[str, str]
    filename: str | None = None
    content_type: str | None = None
    data: bytes = b""
    fields: Mapping[str, str]
    taken: bool = False
    refused: int | None = None

    @property
    def has_length(self) -> bool:
        """Whether the request had a Content-Length."""
        return "content-length" in self.headers


Behaviour = dict[str, Any]


def accept(id: str = "0123456789ab", *, delay_seconds: float = 0) -> Behaviour:
    """Store the upload, and answer with an id."""
    return {"kind": "accept", "id": id, "delay_seconds": delay_seconds}


def refuse(status: int, *exceptions: str, retry_after: str | None = None) -> Behaviour:
    """Read the upload, and answer with an error."""
    return {
        "kind": "refuse",
        "status": status,
        "exceptions": list(exceptions),
        "headers": {} if retry_after is None else {"Retry-After": retry_after},
    }


def answer(body: str, status: int = 200) -> Behaviour:
    """Read the upload, and answer with any body."""
    return {"kind": "raw", "status": status, "body": body}


def hang() -> Behaviour:
    """Read the upload, and never answer."""
    return {"kind": "hang"}


def reset(after_bytes: int = 0) -> Behaviour:
    """Reset the connection during the upload."""
    return {"kind": "reset", "after_bytes": after_bytes}


def forget() -> Behaviour:
    """Store the upload, and reset the connection instead of answering."""
    return {"kind": "forget"}


def drip(bytes_per_second: float) -> Behaviour:
    """Store the upload, and answer slowly."""
    return {"kind": "accept", "id": "0123456789ab", "answer_bytes_per_second": bytes_per_second}


def slow(bytes_per_second: float) -> Behaviour:
    """Read the upload slowly, and store it."""
    return {"kind": "accept", "id": "0123456789ab", "bytes_per_second": bytes_per_second}


class CloudSharkServer:
    """
    A server of CloudShark's API on a free port: it accepts uploads, and finds the captures that
    it stored since its start by their file names.

    @ivar host: what its URL names.
    @ivar port: its port.
    @ivar token: the only valid API token.
    @ivar ca_file: the path of the authority's certificate, for clients to trust.
    """

    def __init__(
        self,
        *,
        token: str = "c0ffee",
        shown: Shown = Shown.GOOD,
        address: str | None = None,
        wrapper: Sequence[str] = (),
    ) -> None:
        """
        @param address: where it listens, and its host; L{None} is 127.0.0.1, and C{localhost}.
        @param wrapper: a prefix of the command, such as C{ip netns exec NAME}.
        """
        self.host = address or "localhost"
        self._address = address or "127.0.0.1"
        self._wrapper = wrapper
        self._process = OwnProcess("cloudshark")
        self._directory = self._process.directory
        self.port = free_port()
        self.token = token
        trusted = Authority(self._directory)
        self.ca_file: Path = trusted.file
        signer = Authority(self._directory, "stranger") if shown is Shown.UNTRUSTED else trusted
        hosts = ("elsewhere.example",) if shown is Shown.WRONG_HOST else (self.host, self._address)
        self._certificate = signer.issue("cloudshark", hosts)
        self._serial = 0
        self.behave(accept())

    @property
    def url(self) -> str:
        """The URL for uploads."""
        return f"https://{self.host}:{self.port}/api/v1/{self.token}/upload"

    def is_idle(self) -> bool:
        """Whether it has read, and stored, all that clients which are gone had sent."""
        local = f":{self.port:04X}"
        # proc(5), /proc/net/tcp: the server's end, unless it listens, or it has closed it.
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        if any(row[1].endswith(local) and row[3] in _OPEN for row in rows):
            return False
        # Each connection has a thread, also if it was reset.
        return len(list(Path(f"/proc/{self._process.pid}/task").iterdir())) == 1

    def start(self) -> None:
        """Start it, and wait until it accepts connections."""
        self._process.start(
            [
                *self._wrapper,
                sys.executable,
                str(Path(__file__).with_name("cloudshark_process.py")),
                *(str(self._directory), self._address, str(self.port), self.token),
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

    def behave(self, *behaviours: Behaviour, search: Behaviour | None = None) -> None:
        """
        Set how it answers: each behaviour is for one upload, and the last one for all further uploads.

        @param search: a L{refuse} for all searches; L{None} to answer them.
        """
        self._serial += 1
        draft = self._directory / "behaviour.draft"
        draft.write_text(json.dumps({"serial": self._serial, "behaviours": behaviours, "search": search}))
        draft.rename(self._directory / "behaviour")

    def uploads(self) -> list[Upload]:
        """The uploads that it received, in order."""
        files = sorted(self._directory.glob("*.json"), key=lambda file: int(file.stem))
        return [self._upload(file) for file in files]

    def captures(self) -> list[str | None]:
        """The names of the captures that it stored, in order."""
        return [upload.filename for upload in self.uploads() if upload.taken]

    def _upload(self, file: Path) -> Upload:
        record = json.loads(file.read_text())
        data = file.with_suffix(".bin")
        return Upload(
            time=record["time"],
            path=record["path"],
            headers=record["headers"],
            filename=record.get("filename"),
            content_type=record.get("content_type"),
            data=data.read_bytes() if data.exists() else b"",
            fields=record.get("fields", {}),
            taken=record.get("taken", False),
            refused=record.get("refused"),
        )
