"""
Sessions of boto3 that keep little in memory.

botocore reads all that it knows of the endpoints of all services, and keeps it for as long as the session,
or a client that it made, is there: 7 MB each time. Only what is known of the services that a session may ask
is read here. For any other, botocore takes the usual endpoint of a region.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import boto3.session
import botocore.session
import msgspec
from botocore.loaders import JSONFileLoader

# As endpoints.json of botocore names them. Some kinds of credentials need the last three.
_SERVICES = frozenset({"s3", "sqs", "sts", "oidc", "portal.sso"})

_document = msgspec.json.Decoder(dict[str, msgspec.Raw])
_partitions = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])


class _FileLoader(JSONFileLoader):  # type: ignore[misc] # botocore has no types
    """Reads botocore's data files, and of the endpoints only those of a few services."""

    def load_file(self, file_path: str) -> Any:
        """
        Read a file.

        @param file_path: without the end of its name.

        @return: L{None} if it does not exist.
        """
        file = Path(f"{file_path}.json")
        if file.name != "endpoints.json" or not file.is_file():
            return super().load_file(file_path)
        return endpoints_of_few(file.read_bytes())


def endpoints_of_few(data: bytes) -> dict[str, Any]:
    """The content of botocore's C{endpoints.json}, without most services."""
    document = _document.decode(data)
    partitions = _partitions.decode(document.pop("partitions"))
    return {
        **{key: msgspec.json.decode(raw) for key, raw in document.items()},
        "partitions": [
            {key: _few(raw) if key == "services" else msgspec.json.decode(raw) for key, raw in each.items()}
            for each in partitions
        ],
    }


def _few(services: msgspec.Raw) -> dict[str, Any]:
    return {
        name: msgspec.json.decode(raw)
        for name, raw in _document.decode(services).items()
        if name in _SERVICES
    }


def boto_session(access_id: str | None, access_key: str | None) -> Any:
    """
    A session of boto3.

    @param access_key: with C{access_id}, the credentials; L{None} looks them up where Amazon's tools do.
    """
    core = botocore.session.Session()
    core.get_component("data_loader").file_loader = _FileLoader()
    return boto3.session.Session(
        aws_access_key_id=access_id, aws_secret_access_key=access_key, botocore_session=core
    )
