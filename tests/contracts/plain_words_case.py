"""A packet system, and requests in plain words for it."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from pcapsvc.core.filter import FilterRejected
from pcapsvc.core.request import CaptureRequest, RequestBounds, parse_request
from tests.chance import chance
from tests.contracts.real_packets_case import RealPacketsCase

KEPT = 2000
#: How libpcap refuses a filter that no packet can match.
NOTHING_MATCHES = "expression rejects all packets"

_BOUNDS = RequestBounds(
    max_packets=1,
    max_bytes=1000,
    max_timeout_seconds=1,
    max_duration_seconds=1,
    max_snap_length=KEPT,
    max_filter_characters=4096,
)


def parsed(fields: dict[str, Any]) -> CaptureRequest:
    """A request with these fields."""
    request = parse_request(json.dumps({"node": "any", "interface": ["any"], **fields}).encode(), _BOUNDS)
    assert isinstance(request, CaptureRequest)
    return request


class PlainWordsCase(RealPacketsCase):
    """A packet system, and requests of a test's own."""

    def setUp(self) -> None:
        """See L{RealPacketsCase.setUp}."""
        super().setUp()
        self.chance: Random = chance(self.id())

    def assert_without_vlans(self, found: object, request: CaptureRequest) -> None:
        """A request was rejected of which C{vlan} is at fault, as there are no VLANs."""
        assert isinstance(found, FilterRejected), (found, request.filter)
        [problem] = found.problems_of(request.filter_fields)
        self.assertEqual(problem.path, "vlan")
        self.assertIn("can't be used on an interface without VLANs", problem.rule)
