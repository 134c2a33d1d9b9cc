"""
An S3 server in its own process that checks signatures.

It is moto's server with IAM checks enabled: the server knows the secret of an access key, computes the
signature (AWS Signature Version 4) of every request, and rejects requests with a different one. What moto
doesn't check is in L{peers.s3_process}.
"""

from __future__ import annotations

import atexit
import copy
import itertools
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import botocore.loaders
import botocore.session
from botocore.config import Config

from peers.process import OwnProcess, answers, free_port

# CreateUser, CreateAccessKey and PutUserPolicy: there is no user with permissions before the third.
_ACTIONS_BEFORE_CHECKS = 3
_MAY_ALL_OF_S3 = (
    '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}'
)


_numbers = itertools.count(1)

# Each session of botocore reads the descriptions of the services anew, which is most of what a client costs.
shared_loader = cache(botocore.loaders.create_loader)


@cache
def _shared_server() -> S3Server:
    server = S3Server()
    atexit.register(server.stop)
    server.start()
    return server


def shared_server() -> S3Server:
    """
    The server of all tests that don't disturb it, with an empty bucket. It takes a second to start, and ends
    with this process.
    """
    return _shared_server().with_bucket(f"captures-{next(_numbers)}")


class S3Server:
    """
    An S3 server on a free port of 127.0.0.1, with one user and one bucket.

    @ivar endpoint: its URL.
    @ivar region: the region of the bucket.
    @ivar access_key: the user's access key.
    @ivar secret_key: the secret of the access key.
    @ivar bucket: the bucket's name.
    """

    region = "us-east-1"
    bucket = "captures"

    def __init__(self) -> None:
        self._process = OwnProcess("s3")
        self._port = free_port()
        self.endpoint = f"http://127.0.0.1:{self._port}"
        self.access_key = ""
        self.secret_key = ""

    def start(self) -> None:
        """Start it, and create the user. From then on it checks every signature."""
        self._process.start(
            [sys.executable, str(Path(__file__).with_name("s3_process.py")), str(self._port)],
            lambda: answers(self._port),
            environment={**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": str(_ACTIONS_BEFORE_CHECKS)},
        )
        iam = self.client("iam", "nobody", "nothing")
        iam.create_user(UserName="pcapsvc")
        made = iam.create_access_key(UserName="pcapsvc")["AccessKey"]
        iam.put_user_policy(UserName="pcapsvc", PolicyName="s3", PolicyDocument=_MAY_ALL_OF_S3)
        iam.close()
        self.access_key = made["AccessKeyId"]
        self.secret_key = made["SecretAccessKey"]
        self._own = self.client("s3", self.access_key, self.secret_key)
        self._own.create_bucket(Bucket=self.bucket)

    def stop(self) -> None:
        """End it."""
        if self.access_key:
            self._own.close()
        self._process.clean_up()

    def client(self, service: str, access_key: str, secret_key: str) -> Any:
        """A boto3 client of this server that retries nothing."""
        core = botocore.session.get_session()
        core.register_component("data_loader", shared_loader())
        # boto3 would make the older signatures in URLs.
        version = "s3v4" if service == "s3" else None
        return boto3.session.Session(botocore_session=core).client(
            service,
            endpoint_url=self.endpoint,
            region_name=self.region,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            config=Config(
                retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}, signature_version=version
            ),
        )

    def keys(self, bucket: str | None = None) -> list[str]:
        """The keys of all objects in a bucket."""
        answer = self._own.list_objects_v2(Bucket=bucket or self.bucket)
        return [one["Key"] for one in answer.get("Contents", [])]

    def get(self, key: str, bucket: str | None = None) -> tuple[bytes, dict[str, str], dict[str, Any]]:
        """
        An object.

        @return: its bytes, its metadata, and the answer to C{HeadObject}.
        """
        where = {"Bucket": bucket or self.bucket, "Key": key}
        head: dict[str, Any] = self._own.head_object(**where)
        return self._own.get_object(**where)["Body"].read(), head["Metadata"], head

    def delete(self, key: str) -> None:
        """Delete an object."""
        self._own.delete_object(Bucket=self.bucket, Key=key)

    def uploads(self) -> list[str]:
        """The keys of the uploads in parts that are neither complete nor aborted."""
        answer = self._own.list_multipart_uploads(Bucket=self.bucket)
        return [one["Key"] for one in answer.get("Uploads", [])]

    def begin_upload(self, key: str) -> None:
        """Begin an upload in parts, which nobody completes."""
        self._own.create_multipart_upload(Bucket=self.bucket, Key=key)

    def grants(self, key: str, bucket: str | None = None) -> list[dict[str, Any]]:
        """The grants of an object's access control list."""
        answer = self._own.get_object_acl(Bucket=bucket or self.bucket, Key=key)
        grants: list[dict[str, Any]] = answer["Grants"]
        return grants

    def with_bucket(self, name: str) -> S3Server:
        """The same server, with a new bucket in place of its own."""
        other = copy.copy(self)
        other.bucket = name
        other.make_bucket(name)
        return other

    def presigned(self, key: str, *, seconds: int = 600, **parameters: Any) -> str:
        """A URL to which an object can be put, for so many seconds."""
        url: str = self._own.generate_presigned_url(
            "put_object", {"Bucket": self.bucket, "Key": key, **parameters}, ExpiresIn=seconds
        )
        return url

    def make_bucket(self, name: str) -> None:
        """Create another bucket."""
        self._own.create_bucket(Bucket=name)
