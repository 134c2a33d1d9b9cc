"""An HTTPS server of its own process, that takes uploads as CloudShark does, and finds them again."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from peers.certificates import Authority
from peers.process import OwnProcess, answers, free_port


class Shown(Enum):
    """The certificate that the server shows."""

    GOOD = "good"
    WRONG_HOST = "wrong host"
    UNTRUSTED = "untrusted"


@dataclass(frozen=True, kw_only=True)
class Upload:
    """
    An upload that the server received.

    @ivar time: when its headers had come, in seconds of the monotonic clock.
    @ivar path: its path, the token included.
    @ivar headers: its headers, by their names in lower case.
    @ivar filename: the file's name; L{None} where the upload was refused, as malformed or of a wrong
        token, or cut off.
    @ivar content_type: the file's media type.
    @ivar data: the file.
    @ivar fields: the other fields of the form: C{additional_tags}.
    @ivar taken: whether it is a capture from then on, and can be found.
    @ivar refused: the status that a malformed upload was answered with, else L{None}.
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
        """Whether its length was told beforehand."""
        return "content-length" in self.headers


Behaviour = dict[str, Any]


def accept(id: str = "0123456789ab", *, delay_seconds: float = 0) -> Behaviour:
    """Take the upload, and give it an id."""
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
    """Read the upload, and answer with any words."""
    return {"kind": "raw", "status": status, "body": body}


def hang() -> Behaviour:
    """Read the upload, and never answer."""
    return {"kind": "hang"}


def reset(after_bytes: int = 0) -> Behaviour:
    """Reset the connection within the upload."""
    return {"kind": "reset", "after_bytes": after_bytes}


def forget() -> Behaviour:
    """Take the upload, and reset the connection in place of an answer."""
    return {"kind": "forget"}


def drip(bytes_per_second: float) -> Behaviour:
    """Take the upload, and answer slowly."""
    return {"kind": "accept", "id": "0123456789ab", "answer_bytes_per_second": bytes_per_second}


def slow(bytes_per_second: float) -> Behaviour:
    """Take the upload, reading slowly."""
    return {"kind": "accept", "id": "0123456789ab", "bytes_per_second": bytes_per_second}


class CloudSharkServer:
    """
    A server of CloudShark's API on a free port of 127.0.0.1: of uploads, and of searches for a file name
    among those that it took since it was started.

    @ivar port: its port.
    @ivar token: the only API token that it knows.
    @ivar ca_file: the path of the authority that a client is to trust.
    """

    host = "localhost"

    def __init__(self, *, token: str = "c0ffee", shown: Shown = Shown.GOOD) -> None:
        self._process = OwnProcess("cloudshark")
        self._folder = self._process.folder
        self.port = free_port()
        self.token = token
        trusted = Authority(self._folder)
        self.ca_file: Path = trusted.file
        signer = Authority(self._folder, "stranger") if shown is Shown.UNTRUSTED else trusted
        hosts = ("elsewhere.example",) if shown is Shown.WRONG_HOST else ("localhost", "127.0.0.1")
        self._certificate = signer.issue("cloudshark", hosts)
        self._serial = 0
        self.behave(accept())

    @property
    def url(self) -> str:
        """Where to upload to."""
        return f"https://{self.host}:{self.port}/api/v1/{self.token}/upload"

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self._process.start(
            [
                sys.executable,
                str(Path(__file__).with_name("cloudshark_process.py")),
                *(str(self._folder), str(self.port), self.token),
                *(str(self._certificate.certificate), str(self._certificate.key)),
            ],
            lambda: answers(self.port),
        )

    def end(self) -> None:
        """End it, so that it can be started again on the same port."""
        self._process.end()

    def stop(self) -> None:
        """End it for good."""
        self._process.clean_up()

    def behave(self, *behaviours: Behaviour, search: Behaviour | None = None) -> None:
        """
        Tell it how to behave: each behaviour serves one upload, the last one all that follow.

        @param search: a L{refuse} for all searches; L{None} answers them.
        """
        self._serial += 1
        draft = self._folder / "behaviour.draft"
        draft.write_text(json.dumps({"serial": self._serial, "behaviours": behaviours, "search": search}))
        draft.rename(self._folder / "behaviour")

    def uploads(self) -> list[Upload]:
        """What it received, in order."""
        files = sorted(self._folder.glob("*.json"), key=lambda file: int(file.stem))
        return [self._upload(file) for file in files]

    def captures(self) -> list[str | None]:
        """The names of the files that it took, in order."""
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
