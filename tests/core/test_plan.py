"""From a request to its captures."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace
from twisted.trial import unittest

from pcapsvc.core.compression import CompressionChoice
from pcapsvc.core.errors import Problem
from pcapsvc.core.history import LONGEST_SECONDS, LookBack
from pcapsvc.core.plan import CapturePlan, NodeView, plan_captures
from pcapsvc.core.request import CaptureRequest, OptionFields
from pcapsvc.core.session import CaptureLimits
from pcapsvc.destinations.s3.options import S3Options
from tests.core.test_request import BOUNDS

NODE = NodeView(
    name="sensor1",
    bounds=BOUNDS,
    default_timeout_seconds=10,
    snap_length=500,
    interfaces_by_alias={"uplink": ("eth0", "eth1"), "inside": ("eth1", "eth2"), "none": ()},
)


NOW = 1_700_000_000.0


class PlanTests(unittest.SynchronousTestCase):
    """What a request means on a node."""

    def plans(
        self, node: NodeView = NODE, *, sent_at: float | None = None, **fields: Any
    ) -> tuple[CapturePlan, ...]:
        """The captures of a request with these fields."""
        request = CaptureRequest(node="sensor1", **fields)
        return plan_captures(request, node, "test", now=NOW, sent_at=sent_at)

    def test_defaults(self) -> None:
        """What a request leaves out is the node's: the largest of everything, and an idle time."""
        [plan] = self.plans(interface=("eth0",))
        self.assertEqual(
            plan.limits,
            CaptureLimits(max_packets=50_000, max_bytes=100_000_000, idle_seconds=10, duration_seconds=3600),
        )
        self.assertEqual((plan.snap_length, plan.bpf, plan.node, plan.alias), (500, "", "sensor1", None))
        self.assertEqual(plan.options, {})

    def test_own_limits(self) -> None:
        """What a request gives, it gets."""
        [plan] = self.plans(interface=("eth0",), packets=5, bytes=6, timeout=7, duration=8, snap=9, bpf="tcp")
        self.assertEqual(
            plan.limits, CaptureLimits(max_packets=5, max_bytes=6, idle_seconds=7, duration_seconds=8)
        )
        self.assertEqual((plan.snap_length, plan.bpf), (9, "tcp"))

    def test_format(self) -> None:
        """The format is the request's, or else the node's."""
        node = replace(NODE, format="other")
        self.assertEqual([each.format for each in self.plans(node, interface=("eth0",))], ["other"])
        [plan] = self.plans(node, interface=("eth0",), format="pcap")
        self.assertEqual(plan.format, "pcap")

    def test_compressions(self) -> None:
        """Each destination has its compression. What the sender should know is added to the warnings."""
        choices = {"a": CompressionChoice(usual="gzip"), "b": CompressionChoice(readable=("none",))}
        node = replace(NODE, compressions=choices)
        warning = Problem(path="tags", rule="was cut")
        [plan] = self.plans(node, interface=("eth0",), warnings=(warning,))
        self.assertEqual((plan.compressions, plan.warnings), ({"a": "gzip", "b": "none"}, (warning,)))
        [plan] = self.plans(node, interface=("eth0",), compress="zstd", warnings=(warning,))
        self.assertEqual(plan.compressions, {"a": "zstd", "b": "none"})
        self.assertEqual([each.path for each in plan.warnings], ["tags", "compress"])

    def test_rolling(self) -> None:
        """A rolling capture ends neither by packets nor by silence, and may do without a history."""
        [plan] = self.plans(interface=("eth0",), rolling=True)
        self.assertEqual(
            plan.limits,
            CaptureLimits(
                max_packets=None,
                max_bytes=100_000_000,
                idle_seconds=None,
                duration_seconds=3600,
                is_rolling=True,
            ),
        )
        self.assertEqual((plan.most_bytes, plan.look_back), (100_000_000, None))
        [plan] = self.plans(interface=("eth0",), rolling=True, bytes=1000, duration=5, before=30)
        self.assertEqual((plan.limits.max_bytes, plan.limits.duration_seconds), (1000, 5))
        self.assertEqual((plan.limits.kept_seconds, plan.most_bytes), (30, 1000))
        self.assertEqual(
            plan.look_back, LookBack(seconds=30, snap_length=500, since=NOW - 30, until=NOW, is_optional=True)
        )
        [plan] = self.plans(interface=("eth0",), rolling=False, before=30)
        self.assertEqual((plan.limits.is_rolling, plan.limits.kept_seconds), (False, None))

    def test_interfaces(self) -> None:
        """Each interface is captured once, in the order of the request, were it there or not."""
        plans = self.plans(interface=("eth1", "nosuch0", "eth1", "eth0"))
        self.assertEqual([plan.interface for plan in plans], ["eth1", "nosuch0", "eth0"])

    def test_alias(self) -> None:
        """An alias stands for every interface that carries it."""
        plans = self.plans(alias=("uplink",))
        self.assertEqual(
            [(plan.interface, plan.alias) for plan in plans], [("eth0", "uplink"), ("eth1", "uplink")]
        )

    def test_aliases_that_meet(self) -> None:
        """An interface of two aliases is captured once, by the first."""
        plans = self.plans(alias=("inside", "uplink"))
        self.assertEqual(
            [(plan.interface, plan.alias) for plan in plans],
            [("eth1", "inside"), ("eth2", "inside"), ("eth0", "uplink")],
        )

    def test_no_past(self) -> None:
        """A request that doesn't ask for the past gets none."""
        [plan] = self.plans(interface=("eth0",), pastonly=False)
        self.assertIsNone(plan.look_back)

    def test_past(self) -> None:
        """If nobody knows when a request was sent, it looks back from now."""
        plans = self.plans(interface=("eth0", "eth1"), before=30)
        self.assertEqual(
            [plan.look_back for plan in plans],
            [LookBack(seconds=30, snap_length=500, since=NOW - 30, until=NOW)] * 2,
        )

    def test_past_and_flags(self) -> None:
        """What a request says of the past is in the plan."""
        [plan] = self.plans(interface=("eth0",), before=30, pastonly=True, beforeoptional=True)
        expected = LookBack(
            seconds=30, snap_length=500, since=NOW - 30, until=NOW, past_only=True, is_optional=True
        )
        self.assertEqual(plan.look_back, expected)

    def test_past_since_it_was_sent(self) -> None:
        """The past counts back from when the request was sent, however long it was under way."""
        [plan] = self.plans(interface=("eth0",), before=30, sent_at=NOW - 50.5)
        self.assertEqual(plan.look_back, LookBack(seconds=30, snap_length=500, since=NOW - 80.5, until=NOW))

    def test_sent_in_the_future(self) -> None:
        """A broker whose clock is ahead doesn't cut the past short."""
        [plan] = self.plans(interface=("eth0",), before=30, sent_at=NOW + 100)
        self.assertEqual(plan.look_back, LookBack(seconds=30, snap_length=500, since=NOW - 30, until=NOW))

    def test_sent_ages_ago(self) -> None:
        """A broker whose clock is far behind has no past reach further than any can."""
        [plan] = self.plans(interface=("eth0",), before=30, sent_at=0.0)
        self.assertEqual(
            plan.look_back, LookBack(seconds=30, snap_length=500, since=NOW - LONGEST_SECONDS, until=NOW)
        )

    def test_unknown_alias(self) -> None:
        """An alias that is not known means nothing here."""
        plans = self.plans(alias=("dmz", "inside"))
        self.assertEqual({plan.alias for plan in plans}, {"inside"})

    def test_most_bytes(self) -> None:
        """A file can come to the limit of bytes, or to as many packets as large as they are kept."""
        [plan] = self.plans(interface=("eth0",), packets=2, snap=100, bytes=5000)
        self.assertEqual(plan.most_bytes, 24 + 2 * 116)
        [plan] = self.plans(interface=("eth0",), packets=2, snap=100, bytes=200)
        self.assertEqual(plan.most_bytes, 200)
        # A cooked handle keeps 21 bytes, however few are asked for.
        [plan] = self.plans(interface=("eth0",), packets=2, snap=1)
        self.assertEqual(plan.most_bytes, 24 + 2 * 37)

    def test_one_known_alias(self) -> None:
        """Beside one that is known, an unknown alias is another node's."""
        self.assertEqual([plan.interface for plan in self.plans(alias=("dmz", "uplink"))], ["eth0", "eth1"])

    def test_options(self) -> None:
        """What a request says of a destination is in the plan."""
        options = {"s3": {"bucket": "b", "encryption": False}}
        [plan] = self.plans(interface=("eth0",), options=options)
        self.assertEqual(plan.options, options)

    def test_disabled_destination(self) -> None:
        """If nothing is delivered to a destination, what a request says of it is left out."""
        disabled = (OptionFields(destination="s3", structure=S3Options),)
        node = replace(NODE, bounds=replace(BOUNDS, options=disabled))
        [plan] = self.plans(node, interface=("eth0",), options={"s3": {"bucket": "b", "folder": "f"}})
        self.assertEqual(plan.options, {})
