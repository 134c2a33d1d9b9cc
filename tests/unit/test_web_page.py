"""The files of the web page over HTTP, and what they must not contain."""

from __future__ import annotations

import re
from importlib.resources import files

from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.web.page import FILES, add_page
from tests.unit.http_case import HTTPTestCase

STATIC = files("pcapsvc.web") / "static"


def parsed(raw: bytes) -> tuple[int, dict[str, str], bytes]:
    """The status, headers and body of the one response that a client received."""
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return int(status.split(" ")[1]), {name.lower(): value for name, value in headers.items()}, body


class PageFilesTests(HTTPTestCase):
    """C{/}, C{/page.css} and C{/page.js}."""

    def setUp(self) -> None:
        super().setUp()
        add_page(self.source.root)

    def fetch(self, path: str, *, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """The answer to one request."""
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        request = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{lines}\r\n"
        return parsed(self.say(request.encode("ascii")).value())

    def test_files(self) -> None:
        """Each file is answered as it is, with its media type and its length."""
        for path, (name, media_type) in FILES.items():
            status, headers, body = self.fetch(f"/{path}")
            self.assertEqual(status, 200)
            self.assertEqual(body, (STATIC / name).read_bytes())
            self.assertEqual(headers["content-type"], media_type)
            self.assertEqual(headers["content-length"], str(len(body)))

    def test_policy(self) -> None:
        """The page may load its own files only, may not be framed, and tells nobody where it was."""
        for path in FILES:
            _, headers, _ = self.fetch(f"/{path}")
            policy = dict(
                directive.split(" ", 1) for directive in headers["content-security-policy"].split("; ")
            )
            self.assertEqual(policy["default-src"], "'none'")
            self.assertEqual(policy["frame-ancestors"], "'none'")
            for kind in ("script-src", "style-src", "connect-src"):
                self.assertEqual(policy[kind], "'self'")
            self.assertNotIn("unsafe", headers["content-security-policy"])
            self.assertEqual(headers["x-content-type-options"], "nosniff")
            self.assertEqual(headers["referrer-policy"], "no-referrer")

    def test_unchanged(self) -> None:
        """A browser that has a file gets 304 without it, whether a proxy has weakened its tag or not."""
        for path in FILES:
            _, headers, body = self.fetch(f"/{path}")
            self.assertEqual(headers["cache-control"], "no-cache")
            for condition in (headers["etag"], f'"other", W/{headers["etag"]}', "*"):
                status, again, rest = self.fetch(f"/{path}", If_None_Match=condition)
                self.assertEqual((status, rest), (304, b""), condition)
                self.assertEqual(again["etag"], headers["etag"])
                self.assertEqual(again["content-length"], str(len(body)))

    def test_changed(self) -> None:
        """A browser that has another version gets the file, and each file has a tag of its own."""
        status, _, body = self.fetch("/page.js", If_None_Match='"00000000000000000000000000000000"')
        self.assertEqual((status, body), (200, (STATIC / "page.js").read_bytes()))
        self.assertEqual(len({self.fetch(f"/{path}")[1]["etag"] for path in FILES}), len(FILES))

    def test_head(self) -> None:
        """HEAD has the headers of GET."""
        status, headers, body = self.fetch("/", method="HEAD")
        self.assertEqual((status, body), (200, b""))
        self.assertEqual(headers["content-length"], str(len((STATIC / "page.html").read_bytes())))

    def test_other_methods(self) -> None:
        """The files can only be read."""
        status, headers, _ = self.fetch("/", method="DELETE")
        self.assertEqual((status, headers["allow"]), (405, "GET, HEAD"))


class ContentTests(SynchronousTestCase):
    """What the files say."""

    html = (STATIC / "page.html").read_text("utf-8")
    css = (STATIC / "page.css").read_text("utf-8")
    script = (STATIC / "page.js").read_text("utf-8")

    def test_only_own_files(self) -> None:
        """The page loads its style and its script, and nothing else."""
        loaded = re.findall(
            r"""<(?:link|script|img|iframe|source|object|embed)\b[^>]*?(?:href|src)="([^"]*)""", self.html
        )
        self.assertEqual(
            [one for one in loaded if not one.startswith("data:image/svg+xml,")], ["page.css", "page.js"]
        )
        self.assertNotRegex(self.css, r"@import|url\(")

    def test_nothing_inline(self) -> None:
        """There is neither script nor style in the HTML: the policy would refuse it."""
        self.assertNotRegex(self.html, r"<style|<script>|\sstyle=|\son\w+=|javascript:")

    def test_text_only(self) -> None:
        """The script can't make HTML or code of text."""
        self.assertNotRegex(
            self.script,
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|"
            r"\beval\b|new Function|srcdoc|setHTML|setTimeout\(\s*[\"'`]|window\.(confirm|alert|prompt)",
        )

    def test_token_stays(self) -> None:
        """The token is kept in the tab, and never in a place that outlives it or leaves it."""
        self.assertIn("sessionStorage", self.script)
        self.assertNotRegex(self.script, r"localStorage|document\.cookie|indexedDB|[?&](access_)?token=")

    def test_elements(self) -> None:
        """Each element that the script looks up by its id is in the HTML, and no id is there twice."""
        ids = re.findall(r'\sid="([^"]+)"', self.html)
        self.assertEqual(len(ids), len(set(ids)))
        self.assertLessEqual(set(re.findall(r'\$\("([^"]+)"\)', self.script)), set(ids))
        named = re.findall(r'\s(?:for|aria-labelledby|aria-describedby)="([^"]+)"', self.html)
        self.assertLessEqual({one for names in named for one in names.split()}, set(ids))
