"""A destination with options of its own: they exist only here, and everything between carries them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from pcapsvc.core.errors import Problem
from pcapsvc.core.fields import check_fields
from pcapsvc.core.plan import NodeView
from pcapsvc.core.request import OptionFields
from pcapsvc.core.result import Accepted, Rejected
from pcapsvc.core.values import Folder, Positive
from peers.frames import udp_frame
from tests.core.test_request import BOUNDS
from tests.unit.pipeline_case import PipelineCase

Recipients = Annotated[
    tuple[Annotated[str, Meta(pattern=r"\A[^\s@]+@[^\s@]+\Z")], ...],
    Meta(max_length=5, description="a list of up to 5 addresses"),
]


class MailOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a request may say of mail. It shares a field with S3."""

    recipients: Recipients | None = None
    priority: Positive | None = None
    folder: Folder | None = None


def check_mail(options: Mapping[str, Any]) -> Iterator[Problem]:
    """The types, and the operator's rule: up to priority 3."""
    values, problems = check_fields(MailOptions, options)
    yield from problems
    if values.get("priority", 0) > 3:
        yield Problem(path="priority", rule="must be at most 3 on this node")


MAIL = OptionFields(destination="mail", structure=MailOptions, check=check_mail)


class RequestTests(PipelineCase):
    """From a message to the destination."""

    mail = MAIL

    def node(self) -> NodeView:
        """A node that delivers by mail, too."""
        node = super().node()
        bounds = replace(node.bounds, options=(*BOUNDS.options, self.mail))
        return replace(node, bounds=bounds)

    def test_carried(self) -> None:
        """What a message says of a destination is in its artifact; a shared field is an option of each."""
        self.begin(packets=1, recipients=["a@example.org"], folder="f", bucket="my-bucket")
        self.arrive(udp_frame(1))
        self.assertEqual(
            self.one.artifacts[0].options,
            {
                "mail": {"recipients": ("a@example.org",), "folder": "f"},
                "s3": {"folder": "f", "bucket": "my-bucket"},
            },
        )

    def test_checked(self) -> None:
        """Types and rules are those of the destination, and problems have the field as their path."""
        verdict = self.submit(interface=["mem0"], recipients=["nobody"], priority=4, acl="all")
        assert isinstance(verdict, Rejected)
        self.assertEqual(
            {problem.path: problem.rule for problem in verdict.problems},
            {
                "recipients": "must be a list of up to 5 addresses",
                "priority": "must be at most 3 on this node",
                "acl": "must be one of private, public-read, public-read-write, aws-exec-read,"
                " authenticated-read, bucket-owner-read, bucket-owner-full-control, log-delivery-write",
            },
        )

    def test_left_out(self) -> None:
        """C{null}, an empty text and an empty list are as if left out, as in every other field."""
        self.begin(packets=1, recipients=[], folder="", priority=None)
        self.arrive(udp_frame(1))
        self.assertEqual(self.one.artifacts[0].options, {})
        self.assertIsInstance(self.submit(interface=["mem0"], recipients=""), Rejected)

    def test_unknown_key(self) -> None:
        """Its fields are known, so a misspelt one is recognized."""
        verdict = self.submit(interface=["mem0"], recipient=["a@example.org"])
        assert isinstance(verdict, Rejected)
        self.assertIn("did you mean 'recipients'?", str(verdict.problems[0]))


class DisabledTests(RequestTests):
    """The same, on a node that doesn't deliver to it."""

    mail = replace(MAIL, check=None)

    def test_carried(self) -> None:
        """Its fields have no effect."""
        self.begin(packets=1, recipients=["a@example.org"], folder="f")
        self.arrive(udp_frame(1))
        self.assertEqual(self.one.artifacts[0].options, {"s3": {"folder": "f"}})

    def test_checked(self) -> None:
        """Only the types of its fields are checked."""
        self.assertIsInstance(self.submit(interface=["mem0"], recipients=["nobody"]), Rejected)
        self.assertIsInstance(self.submit(interface=["mem0"], priority=4, packets=1), Accepted)
        self.arrive(udp_frame(1))


class ConflictTests(PipelineCase):
    """Two destinations with one field."""

    def test_another_type(self) -> None:
        """If its type differs, or it is a field of every request, the node doesn't start."""
        for field in ("folder", "packets"):
            structure = msgspec.defstruct("Other", [(field, Positive | None, None)])
            other = OptionFields(destination="other", structure=structure)
            error = self.assertRaises(TypeError, replace, BOUNDS, options=(MAIL, other))
            self.assertIn(f"other: {field!r}", str(error))
