"""CloudShark is searched before a capture is uploaded again."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace
from twisted.internet import defer
from twisted.web.http import Request
from twisted.web.server import NOT_DONE_YET

from pcapsvc.core.errors import DestinationError
from tests.unit.cloudshark_case import TOKEN_IN_URL, CloudSharkCase, refusal
from tests.unit.contents import make_artifact


class SearchTests(CloudSharkCase):
    """L{CloudShark}, if a capture may be there already."""

    NAME = "web1-eth0-1700000000-abc.pcap"

    async def again(self, **changes: Any) -> str:
        """Deliver a capture of which an attempt may have arrived. Its link, without the server."""
        artifact = replace(make_artifact(self.content, name=self.NAME), may_be_there=True)
        receipt = await self.make(**changes).store(artifact)
        self.assertTrue(self.content.all_closed)
        self.assertNoToken(receipt.location)
        return receipt.location.rpartition("/captures/")[2]

    @property
    def methods(self) -> list[bytes]:
        return [request.method for request in self.server.requests]

    async def test_found(self) -> None:
        """What is found by its name is not uploaded again."""
        self.server.search = lambda request: {
            "captures": [{"filename": self.NAME, "id": "a-b", "size": self.content.size}]
        }
        self.assertEqual(await self.again(), "a-b")
        [request] = self.server.requests
        self.assertEqual(request.method, b"GET")
        self.assertEqual(request.path, b"/api/v1/" + TOKEN_IN_URL + b"/search")
        self.assertEqual(request.args, {b"search[filename]": [self.NAME.encode()]})

    async def test_not_found(self) -> None:
        """What isn't there is uploaded; a longer name, another size, or what is no capture doesn't count."""
        for captures in (
            [],
            [{"filename": f"copy of {self.NAME}", "id": "1"}],
            [{"filename": self.NAME, "id": "1", "size": self.content.size - 1}],
            [
                {"filename": self.NAME},
                {"filename": self.NAME, "id": ""},
                {"filename": self.NAME, "id": "a/b"},
                None,
                "x",
                {"id": "1"},
            ],
        ):
            self.server.requests.clear()
            self.server.search = lambda request, captures=captures: {"captures": captures}
            self.assertEqual(await self.again(), "f00")
            self.assertEqual(self.methods, [b"GET", b"POST"])

    async def test_no_search(self) -> None:
        """So is a capture if the search fails, which is logged."""
        for answer in (
            refusal(401, "not permitted"),
            refusal(404, "no"),
            refusal(501, "no"),
            lambda request: b"<html>",
            lambda request: {"captures": None},
        ):
            self.server.requests.clear()
            self.logged.clear()
            self.server.search = answer
            self.assertEqual(await self.again(), "f00")
            self.assertEqual(self.methods, [b"GET", b"POST"])
            self.assertIn("; it is uploaded again", "".join(self.logged))
            self.assertNoToken()

    async def test_slow_search(self) -> None:
        """So is it if there is no answer in time."""
        self.server.search = lambda request: NOT_DONE_YET
        self.assertEqual(await self.again(search_seconds=0.05), "f00")
        self.assertEqual(self.methods, [b"GET", b"POST"])
        self.assertIn("timed out; it is uploaded again", "".join(self.logged))

    async def test_later(self) -> None:
        """If the server asks us to wait, we do."""

        def later(request: Request) -> Any:
            request.setHeader("retry-after", "17")
            return refusal(503, "slow down")(request)

        self.server.search = later
        error = await self.assertFailure(defer.ensureDeferred(self.again()), DestinationError)
        self.assertEqual((error.retryable, error.retry_after_seconds), (True, 17.0))
        self.assertIn("answered 503: slow down", str(error))
        self.assertEqual(self.methods, [b"GET"])

    async def test_passing(self) -> None:
        """It may be there if the server can't tell for now: that is asked again, and nothing is uploaded."""
        for code in (408, 423, 425, 429, 500, 502, 503, 504):
            self.server.requests.clear()
            self.server.search = refusal(code, "not now")
            error = await self.assertFailure(defer.ensureDeferred(self.again()), DestinationError)
            self.assertTrue(error.retryable, code)
            self.assertIn(f"answered {code}: not now", str(error))
            self.assertEqual(self.methods, [b"GET"])

    async def test_gone(self) -> None:
        """A connection that is lost while it is asked may be tried again."""
        self.server.search = lambda request: request.transport.abortConnection() or NOT_DONE_YET
        error = await self.assertFailure(defer.ensureDeferred(self.again()), DestinationError)
        self.assertTrue(error.retryable)
        self.assertEqual(self.methods, [b"GET"])
        self.assertNoToken(str(error))
