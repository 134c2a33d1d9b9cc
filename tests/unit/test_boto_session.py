"""What sessions of boto3 know."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import botocore
import botocore.credentials
import botocore.tokens
from botocore.exceptions import BotoCoreError
from botocore.regions import EndpointResolver
from twisted.trial import unittest

from pcapsvc.net.boto_session import boto_session, endpoints_of_few

# How botocore makes the client of a service from which it gets credentials.
_CLIENT = re.compile(r"""client(?:_creator)?\((?:self\._session,)?\s*['"]([a-z-]+)['"]""")
ENDPOINTS = Path(botocore.__file__).with_name("data") / "endpoints.json"


def endpoint(resolver: Any, service: str, region: str | None, variants: dict[str, bool]) -> Any:
    """An endpoint, or why there is none."""
    try:
        return resolver.construct_endpoint(service, region, **variants)
    except BotoCoreError as problem:
        return str(problem)


class EndpointTests(unittest.SynchronousTestCase):
    """L{boto_session}, and what it reads."""

    def test_same(self) -> None:
        """Everything is known of the services that are used that botocore knows of them."""
        data = ENDPOINTS.read_bytes()
        whole = json.loads(data)
        few, all = EndpointResolver(endpoints_of_few(data)), EndpointResolver(whole)
        regions = [region for partition in whole["partitions"] for region in partition["regions"]]
        self.assertGreater(len(regions), 30)
        for service in ("s3", "sqs", "sts", "oidc", "portal.sso"):
            for region in (*regions, "eu-new-9", "aws-global", None):
                for variants in ({}, {"use_fips_endpoint": True}, {"use_dualstack_endpoint": True}):
                    self.assertEqual(
                        endpoint(few, service, region, variants), endpoint(all, service, region, variants)
                    )
            self.assertEqual(few.get_available_endpoints(service), all.get_available_endpoints(service))

    def test_credentials(self) -> None:
        """
        So it is of the services from which botocore gets credentials. A new version of it may have more of
        them.
        """
        source = "".join(
            Path(module.__file__).read_text() for module in (botocore.credentials, botocore.tokens)
        )
        services = set(_CLIENT.findall(source))
        self.assertLessEqual({"sts", "sso", "sso-oidc"}, services)
        whole = json.loads(ENDPOINTS.read_bytes())
        few = endpoints_of_few(ENDPOINTS.read_bytes())
        session = boto_session("id", "hunter22")
        for service in services:
            client = session.client(service, region_name="eu-west-1")
            self.addCleanup(client.close)
            name = client.meta.service_model.endpoint_prefix
            for known, all in zip(few["partitions"], whole["partitions"], strict=True):
                self.assertEqual(known["services"].get(name), all["services"].get(name), service)

    def test_little(self) -> None:
        """A session knows nothing of the other services."""
        session = boto_session("id", "hunter22")
        for service, is_known in (("s3", True), ("sqs", True), ("ec2", False), ("lambda", False)):
            self.assertEqual(bool(session.get_available_regions(service)), is_known, service)
        few = endpoints_of_few(ENDPOINTS.read_bytes())
        self.assertLess(len(json.dumps(few)), ENDPOINTS.stat().st_size / 10)

    def test_others(self) -> None:
        """Data of other kinds is read as usual, and a client of any service can be made."""
        session = boto_session("id", "hunter22")
        client = session.client("ec2", region_name="eu-west-1")
        self.addCleanup(client.close)
        self.assertEqual(client.meta.endpoint_url, "https://ec2.eu-west-1.amazonaws.com")
