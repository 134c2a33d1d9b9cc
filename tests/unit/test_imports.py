"""What a daemon imports."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

from twisted.trial.unittest import SynchronousTestCase

from pcapsvc.lean_import import replaced
from tests.unit.documents import ROOT
from tests.unit.settings_case import SettingsTestCase

# A process that has only imported what each daemon does, and is forked for each configuration.
_PARENT = """
import json, os, sys
from pcapsvc import tap
for line in sys.stdin:
    if os.fork():
        _, status = os.wait()
        if status:
            sys.exit("see above")
        continue
    path, *build = json.loads(line)
    if build:
        options = tap.Options()
        options.parseOptions(["--config", path])
        tap.makeService(options)
    else:
        tap.load_settings(path, tap.COMPONENTS)
    print(json.dumps([name for name, module in sys.modules.items() if module is not None]), flush=True)
    os._exit(0)
"""


@cache
def parent() -> subprocess.Popen[bytes]:
    """The process. It ends with its standard input."""
    return subprocess.Popen(
        [sys.executable, "-c", _PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )


class ImportsTests(SettingsTestCase):
    """A configuration imports only what it needs: most of the memory at rest is modules."""

    LOCAL = "[general]\nwritelocal = true\nlocaldir = '/tmp'\n"
    HTTP = f"{LOCAL}[http]\nlisten = 'unix:/nowhere/http.sock'\n"
    COSTLY = (
        "OpenSSL",
        "automat",
        "importlib.metadata",
        "pcapsvc.capture.history",
        "pcapsvc.capture.past",
        "pcapsvc.delivery.folder",
        "pcapsvc.delivery.spool",
        "re2",
        "boto3",
        "botocore",
        "cryptography",
        "dpkt",
        "kafka",
        "treq",
        "twisted.conch",
        "txredisapi",
    )

    def imported(self, text: str, *, build: bool = True) -> set[str]:
        """Which of these modules a process has imported that loads a configuration, and builds its node."""
        return self.modules(text, build=build) & set(self.COSTLY)

    def modules(self, text: str, *, build: bool = True) -> set[str]:
        """All modules that such a process has imported."""
        arguments = [str(Path(self.file(text)).absolute()), *(["build"] if build else [])]
        stdin, stdout = parent().stdin, parent().stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps(arguments).encode() + b"\n")
        stdin.flush()
        return set(json.loads(stdout.readline()))

    def test_loaded(self) -> None:
        """To load a configuration imports no client library, whatever is enabled in it."""
        text = (
            f"{self.HTTP}[redis]\nlisten = true\n[kafka]\nlisten = true\nserver = ['a:1']\n"
            "[sqs]\nlisten = true\nurl = 'http://a/1/q'\n[s3]\nupload = true\n"
            "[cloudshark]\nupload = true\ntoken = 't'\n"
        )
        self.assertEqual(set(), self.imported(text, build=False))

    def test_built(self) -> None:
        """A component's client library is imported if the component is enabled, and only then."""
        for text, expected in (
            (self.HTTP, set()),
            (f"{self.LOCAL}[redis]\nlisten = true\n", {"txredisapi"}),
            (f"{self.LOCAL}[redis]\nlisten = true\ntls = true\n", {"OpenSSL", "cryptography", "txredisapi"}),
            (
                f"{self.HTTP}[delivery]\nspooldir = '/nowhere'\n",
                {"pcapsvc.delivery.folder", "pcapsvc.delivery.spool"},
            ),
            (
                f"{self.HTTP}[[interface]]\nname = 'lo'\nhistory = 5\n",
                {"pcapsvc.capture.history", "pcapsvc.capture.past"},
            ),
            (f"{self.LOCAL}[kafka]\nlisten = true\nserver = ['127.0.0.1:1']\n", {"kafka"}),
        ):
            self.assertEqual(expected, self.imported(text), text)

    def test_without_http(self) -> None:
        """Without HTTP, nothing of the server, API, page and metrics is imported but the settings."""
        text = f"{self.LOCAL}[redis]\nlisten = true\n[reports.redis]\nsend = true\n"
        homes = (
            *("twisted.web", "prometheus_client", "pcapsvc.web", "pcapsvc.sources.http"),
            *("pcapsvc.reports.metrics", "pcapsvc.net.http_server", "pcapsvc.net.http_resource"),
        )
        settings = {"", ".settings", ".tokens"}

        def of_http(modules: set[str]) -> set[str]:
            return {
                module
                for module in modules
                for home in homes
                if f"{module}.".startswith(f"{home}.") and module.removeprefix(home) not in settings
            }

        self.assertEqual(set(), of_http(self.modules(text)))
        found = of_http(self.modules(self.HTTP))
        self.assertLessEqual({"pcapsvc.web.api", "pcapsvc.sources.http.source", "pcapsvc.web.page"}, found)


class LeanImportTests(SynchronousTestCase):
    """What stands for a module while a library is imported is gone afterwards."""

    def test_module(self) -> None:
        """A module is replaced for as long as that, unless it is loaded: then it stays."""
        stand_in = ModuleType("calendar")
        self.patch(sys, "modules", {name: each for name, each in sys.modules.items() if name != "calendar"})
        with replaced("calendar", stand_in):
            self.assertIs(importlib.import_module("calendar"), stand_in)
        real = importlib.import_module("calendar")
        self.assertIsNot(real, stand_in)
        with replaced("calendar", stand_in):
            self.assertIs(importlib.import_module("calendar"), real)

    def test_none(self) -> None:
        """Without a module in its place, it can't be imported, also if something fails then."""
        self.patch(sys, "modules", {name: each for name, each in sys.modules.items() if name != "calendar"})
        with self.assertRaises(ImportError), replaced("calendar", None):
            importlib.import_module("calendar")
        importlib.import_module("calendar")

    def test_twisted(self) -> None:
        """Once Redis' library is imported, which is the first module here, all of Twisted is there."""
        code = (
            "import pcapsvc.sources.redis.library\n"
            "from twisted.internet import _newtls, endpoints, ssl\n"
            "from twisted.protocols import tls\n"
            "from twisted.application.internet import ClientService\n"
            "assert _newtls.TLSMemoryBIOFactory is tls.TLSMemoryBIOFactory\n"
            "assert ClientService.startService and endpoints.wrapClientTLS and ssl.Certificate.loadPEM\n"
        )
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
