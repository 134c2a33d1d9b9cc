"""Who may send HTTP requests: web pages, names, unix sockets, tokens and their roles."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import UNIXAddress

from pcapsvc.core.event import CaptureDone
from pcapsvc.core.role import Role
from pcapsvc.net.http_resource import Answer, Resource
from tests.unit.http_case import HTTPTestCase, Response, token


class BrowserTests(HTTPTestCase):
    """Requests that another web page could make a browser send are refused."""

    def test_origin(self) -> None:
        """A request from another page is refused, whatever its method, or without an origin."""
        for origin in (
            *("http://evil.example", "null", "", "https://localhost:8480", "http://localhost:8481"),
            *("http://localhost", "http://localhost:8480.evil.test", "http://localhost:8480/"),
        ):
            for method, path in (("POST", "/captures"), ("GET", "/captures"), ("DELETE", "/captures/abc1")):
                response = self.ask(method, path, b"{}", Origin=origin, Host="localhost:8480")
                self.assertEqual(response.code, 403, origin)
                self.assertIn("Origin", response.content["detail"])
        self.assertEqual(self.sink.submitted, [])

    def test_own_origin(self) -> None:
        """A request from this API's own page is accepted."""
        for host in ("localhost", "localhost:8480", "[::1]:8480", "127.0.0.1"):
            for origin in (f"http://{host}", f"HTTP://{host}"):
                response = self.ask("POST", "/captures", b"{}", Origin=origin, Host=host)
                self.assertEqual(response.code, 202, origin)

    def test_own_name(self) -> None:
        """A name that was made to point here has its own origin, and is refused."""
        response = self.ask("POST", "/captures", b"{}", Origin="http://evil.test", Host="evil.test")
        self.assertEqual(response.code, 403)

    def test_url(self) -> None:
        """The URL at which others reach the API is its own as well: its origin, and its host."""
        self.source.add_url("https://Proxy.example:443/node7")
        self.source.add_url("http://[2001:db8::1]:8080")
        for host, origin, code in (
            ("localhost", "https://proxy.example", 202),
            ("localhost", "http://proxy.example", 403),
            ("localhost", "https://proxy.example:8443", 403),
            ("localhost", "http://[2001:db8::1]:8080", 202),
            ("proxy.example", "https://proxy.example", 202),
            ("Proxy.example", None, 202),
            ("proxy.example:81", None, 403),
        ):
            given = {} if origin is None else {"Origin": origin}
            response = self.ask("POST", "/captures", b"{}", Host=host, **given)
            self.assertEqual(response.code, code, (host, origin))

    def test_fetch_metadata(self) -> None:
        """What a browser says of the relation between page and server counts as well."""
        for site, code in (
            ("same-origin", 200),
            ("none", 200),
            ("same-site", 403),
            ("cross-site", 403),
            ("", 403),
        ):
            self.assertEqual(self.ask("GET", "/captures", Sec_Fetch_Site=site).code, code, site)

    def test_link(self) -> None:
        """Other pages may link to what is public; they can't read it."""
        self.source.root.putChild(b"public", Public())
        self.assertEqual(self.ask("GET", "/public", Sec_Fetch_Site="cross-site").code, 200)
        self.assertEqual(self.ask("GET", "/public", Origin="http://evil.test").code, 403)
        self.assertEqual(self.ask("POST", "/public", Sec_Fetch_Site="cross-site").code, 403)

    def test_names(self) -> None:
        """Host names are refused, as DNS may point them anywhere; so is what only looks like an address."""
        for host in ["", "[evil]", *"evil.test evil.test:80 127.0.0.1.evil.test localhost.evil".split()]:
            self.assertEqual(self.ask("POST", "/captures", b"{}", Host=host).code, 403, host)
        self.assertEqual(self.sink.submitted, [])

    def test_addresses(self) -> None:
        """Addresses and localhost are accepted, with any port."""
        for host in "127.0.0.1 127.0.0.1:8480 10.1.2.3:1 [::1] [::1]:8480 LOCALHOST localhost:9".split():
            self.assertEqual(self.ask("POST", "/captures", b"{}", Host=host).code, 202, host)

    def test_no_host(self) -> None:
        """HTTP/1.1 requires one Host header; HTTP/1.0 does not."""
        self.assertEqual(Response(self.say(b"GET /captures/abc1 HTTP/1.1\r\n\r\n").value()).code, 400)
        two = self.say(b"GET /captures/abc1 HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n")
        self.assertEqual(Response(two.value()).code, 400)
        self.assertEqual(Response(self.say(b"GET /captures/abc1 HTTP/1.0\r\n\r\n").value()).code, 200)

    def test_absolute_form(self) -> None:
        """If the request target is a URL, its host counts rather than the header."""
        for target, host, code in (
            ("http://localhost/captures", "localhost", 202),
            ("HTTP://127.0.0.1:8480/captures?x=http://evil.test", "evil.test", 202),
            ("https://[::1]/captures", "[::1]", 202),
            ("http://evil.test/captures", "localhost", 403),
            ("http://evil.test", "localhost", 403),
            ("http://localhost@evil.test/captures", "localhost", 400),
            ("http://localhost", "localhost", 404),
            ("http:///captures", "localhost", 400),
            ("ftp://localhost/captures", "localhost", 400),
            ("captures", "localhost", 400),
        ):
            self.assertEqual(self.ask("POST", target, b"{}", Host=host).code, code, target)
        self.assertEqual(self.ask("GET", "http://localhost/captures/abc1").content, self.state_of("abc1"))

    def test_absolute_form_without_host(self) -> None:
        """A URL doesn't replace the Host header that HTTP/1.1 requires; HTTP/1.0 doesn't require one."""
        for version, code in ((b"1.1", 400), (b"1.0", 200)):
            transport = self.say(b"GET http://localhost/captures/abc1 HTTP/%s\r\n\r\n" % version)
            self.assertEqual(Response(transport.value()).code, code)


class UnixSocketTests(HTTPTestCase):
    """Over a unix socket, to which no name can point."""

    host_address = UNIXAddress("/run/pcapsvc/http.sock")

    def test_names(self) -> None:
        """Any host name is accepted, or none."""
        for host in ("pcapsvc", "evil.test:80", ""):
            self.assertEqual(self.ask("POST", "/captures", b"{}", Host=host).code, 202)
        self.assertEqual(self.ask("POST", "http://pcapsvc/captures", b"{}").code, 202)

    def test_browsers(self) -> None:
        """A proxy may pass on what a browser has sent: then the same rules apply as without a unix socket."""
        for host, given, code in (
            ("localhost", {"Origin": "http://localhost"}, 202),
            ("localhost", {"Origin": "http://evil.test"}, 403),
            ("evil.test", {"Origin": "http://evil.test"}, 403),
            ("evil.test", {"Sec_Fetch_Site": "same-origin"}, 403),
        ):
            response = self.ask("POST", "/captures", b"{}", Host=host, **given)
            self.assertEqual(response.code, code, (host, given))


class TokenTests(HTTPTestCase):
    """With a token, clients must present it."""

    TOKEN = "s3cret-tökén"
    tokens = (token("an-other-token"), token(TOKEN), token("one-more-token"))

    def test_wrong(self) -> None:
        """Without it, with a wrong one, or in another scheme, every path gets 401."""
        for path in ("/captures", "/captures/abc1", "/elsewhere"):
            for given in (
                {},
                {"Authorization": "Bearer no"},
                {"Authorization": "Bearer"},
                {"Authorization": f"Basic {self.right()}"},
                {"Authorization": self.right()},
            ):
                response = self.ask("POST", path, b"{}", **given)
                self.assertEqual((response.code, response.headers["www-authenticate"]), (401, "Bearer"))
        self.assertEqual(self.sink.submitted, [])

    def test_right(self) -> None:
        """The right one is accepted, whatever the case of the scheme; then any host name is, too."""
        for scheme in ("Bearer", "bearer"):
            response = self.ask(
                "POST", "/captures", b"{}", Authorization=f"{scheme} {self.right()}", Host="node7.example"
            )
            self.assertEqual(response.code, 202)

    def test_origin(self) -> None:
        """Requests from web pages are refused all the same."""
        response = self.ask("POST", "/captures", Authorization=f"Bearer {self.right()}", Origin="null")
        self.assertEqual(response.code, 403)

    @staticmethod
    def right() -> str:
        """The token, one character for each of its bytes."""
        return TokenTests.TOKEN.encode().decode("latin-1")


class Public(Resource):
    """What everyone may have."""

    allowedMethods = (b"GET", b"HEAD", b"POST")
    is_public = True

    def render_GET(self, request: Any) -> Answer:
        return Answer.json({"roles": sorted(role.value for role in request.roles)})

    render_POST = render_GET


class RoleTests(HTTPTestCase):
    """What a client may do depends on its token."""

    tokens = (token("for-both"), token("to-read-1", Role.READ), token("to-capture", Role.CAPTURE))

    def code(self, method: str, path: str, presented: str | None) -> int:
        """The status of the answer to a client that presents a token."""
        given = {} if presented is None else {"Authorization": f"Bearer {presented}"}
        body = b"{}" if method == "POST" else b""
        response = self.ask(method, path, body, **given)
        if response.code == 403:
            assert response.content is not None
            self.assertIn("role", response.content["detail"])
            self.assertEqual(response.headers["www-authenticate"], 'Bearer error="insufficient_scope"')
        return response.code

    def test_roles(self) -> None:
        """Reading and capturing need a token each; one role does not imply the other."""
        self.report("abc1", CaptureDone())
        for method, path, both, read, capture in (
            ("GET", "/captures", 200, 200, 403),
            ("GET", "/captures/abc1", 200, 200, 403),
            ("POST", "/captures", 202, 403, 202),
            ("DELETE", "/captures/abc1", 409, 403, 409),
            ("PUT", "/captures/abc1", 405, 405, 405),
            ("GET", "/elsewhere", 404, 404, 404),
        ):
            for presented, code in (
                *(("for-both", both), ("to-read-1", read), ("to-capture", capture)),
                *((None, 401), ("to-read", 401), ("to-read-11", 401), ("to-read-1 read", 401)),
            ):
                self.assertEqual(self.code(method, path, presented), code, (method, path, presented))
        self.assertEqual(len(self.sink.submitted), 2)

    def test_public(self) -> None:
        """What is public needs no token, and a wrong one does no harm. It learns the roles of its client."""
        self.source.root.putChild(b"public", Public())
        for presented, roles in (
            (None, []),
            ("wrong-one", []),
            ("to-read-1", ["read"]),
            ("to-capture", ["capture"]),
            ("for-both", ["capture", "read"]),
        ):
            given = {} if presented is None else {"Authorization": f"Bearer {presented}"}
            self.assertEqual(self.ask("GET", "/public", **given).content, {"roles": roles})

    def test_public_is_for_reading(self) -> None:
        """A stranger can only read what is public, and sends nothing with it."""
        self.source.root.putChild(b"public", Public())
        self.assertEqual(self.ask("GET", "/public").code, 200)
        self.assertEqual(self.ask("HEAD", "/public").code, 200)
        self.assertEqual(self.ask("POST", "/public").code, 401)
        self.assertEqual(self.ask("GET", "/public", b"{}").code, 401)
        chunked = self.say(b"GET /public HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        self.assertEqual(Response(chunked.value()).code, 401)

    def test_strangers(self) -> None:
        """Who has only had what is public is a stranger still: strangers make room for others."""
        self.source.root.putChild(b"public", Public())
        strangers, known = [], self.connect()
        known.send(b"GET /captures HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer for-both\r\n\r\n")
        for _ in range(self.max_connections):
            strangers.append(self.say(b"GET /public HTTP/1.1\r\nHost: a\r\n\r\n"))
            self.assertEqual(Response(strangers[-1].value()).code, 200)
        self.assertTrue(strangers[0].aborted)
        self.assertFalse(strangers[-1].aborted)
        self.assertFalse(known.aborted)

    def test_served_last(self) -> None:
        """The next request of a stranger waits for its turn behind those of clients with a token."""
        self.source.root.putChild(b"public", Public())
        turns: list[bool] = []
        ask = self.endpoint.factory.turns.ask

        def listen(work: Any, *, is_known: bool) -> None:
            turns.append(is_known)
            ask(work, is_known=is_known)

        self.patch(self.endpoint.factory.turns, "ask", listen)
        for head, known in (
            (b"GET /public HTTP/1.1\r\nHost: a\r\n\r\n", False),
            (b"GET /captures HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer for-both\r\n\r\n", True),
        ):
            client = self.say(head)
            turns.clear()
            client.send(head)
            self.assertEqual(set(turns), {known})
