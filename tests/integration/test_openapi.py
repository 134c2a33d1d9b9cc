"""The API of the installed daemon, against its description."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import requests
import schemathesis
from jsonschema import Draft202012Validator, FormatChecker
from twisted.trial.unittest import SynchronousTestCase

from peers.daemon import Daemon
from peers.requirement import require_root
from tests.examples import HealthCheck, given, settings
from tests.unit.documents import ROOT
from tests.unit.test_openapi import DOCUMENT, schema

#: How many examples there are for each operation, besides those at the edges of its schemas.
EXAMPLES = int(os.environ.get("PCAPSVC_API_EXAMPLES", "5"))

_PATIENCE_SECONDS = 300 + 30 * EXAMPLES
_TOKEN = "a-token-that-may-do-everything"


def strict(value: Any) -> Any:
    """Schemas of which each object has no other properties than those that are described."""
    if isinstance(value, list):
        return [strict(each) for each in value]
    if not isinstance(value, dict):
        return value
    found = {key: strict(each) for key, each in value.items()}
    return {"additionalProperties": False, **found} if value.get("type") == "object" else found


class DescriptionTests(SynchronousTestCase):
    """Whatever the schemas allow is answered as they say, and whatever they don't is rejected."""

    def setUp(self) -> None:
        """The daemon captures."""
        require_root("to capture packets")

    def daemon(self, *, keys: str = "", max_duration: int = 1) -> Daemon:
        """
        A daemon on which many captures may run.

        @param max_duration: for how many seconds: not for long, as some requests follow one to its end.
        """
        daemon = Daemon(keys, general=f"maxcaptures = 256\nmaxduration = {max_duration}\n")
        self.addCleanup(daemon.stop)
        return daemon

    def run_schemathesis(self, daemon: Daemon, *options: str) -> None:
        """It finds nothing."""
        program = str(Path(sys.executable).with_name("schemathesis"))
        run = subprocess.run(
            [
                *(program, "--config-file", str(ROOT / "schemathesis.toml"), "--no-color"),
                *("run", f"http://127.0.0.1:{daemon.port}/openapi.json"),
                *("--request-timeout", "60", "--generation-database", "none", *options),
            ],
            cwd=self.mktemp_folder(),
            capture_output=True,
            text=True,
            timeout=_PATIENCE_SECONDS,
        )
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
        self.assertNotIn("Traceback", daemon.log)

    def test_with_a_token(self) -> None:
        """A node with a token, which schemathesis has; without it, only what is public is answered."""
        path = Path(self.mktemp_folder(), "tokens")
        path.write_text(f"{_TOKEN}\n")
        # The keys follow those of [http].
        daemon = self.daemon(keys=f"tokenfile = {json.dumps(str(path))}\n")
        daemon.start()
        self.run_schemathesis(
            daemon,
            *(
                "-H",
                f"Authorization: Bearer {_TOKEN}",
                "--phases",
                "fuzzing",
                "--max-examples",
                str(EXAMPLES),
            ),
        )

    def test_events(self) -> None:
        """The stream of events, whose answers have no end, so that only their beginning is looked at."""
        daemon = self.daemon()
        daemon.start()
        operation = schemathesis.openapi.from_dict(DOCUMENT)["/events"]["GET"]
        statuses = set()
        with requests.Session() as session:

            def ask(case: schemathesis.Case) -> None:
                sent = case.as_transport_kwargs(base_url=f"http://127.0.0.1:{daemon.port}")
                with session.request(**sent, stream=True, timeout=60) as response:
                    statuses.add(response.status_code)
                    if response.status_code == 200:
                        self.assertEqual(response.headers["Content-Type"], "text/event-stream")
                        response.raw.close()
                        response._content = b""
                    case.validate_response(response)

            bounds: Any = {"deadline": None, "database": None, "suppress_health_check": [*HealthCheck]}
            check = settings(max_examples=EXAMPLES, **bounds)
            for mode in schemathesis.GenerationMode:
                check(given(case=operation.as_strategy(generation_mode=mode))(ask))()
        self.assertLessEqual({200}, statuses)
        self.assertNotIn("Traceback", daemon.log)

    def strictly(self, daemon: Daemon, path: str, name: str, method: str = "GET", body: Any = None) -> Any:
        """An answer of 200, which has no property that a schema doesn't have."""
        raw = None if body is None else json.dumps(body).encode()
        status, content = daemon.request(method, path, raw)
        self.assertEqual(status, 200, content)
        components = {"schemas": strict(DOCUMENT["components"]["schemas"])}
        validator = Draft202012Validator(
            {"$ref": f"#/components/schemas/{name}", "components": components},
            format_checker=FormatChecker(),
        )
        validator.validate(content)
        return content

    def test_nothing_more(self) -> None:
        """Answers have all that their description says they have, and nothing more."""
        daemon = self.daemon(
            keys=f'[delivery]\nspooldir = "{self.mktemp_folder()}"\n[reports.redis]\nsend = true\n',
            max_duration=3600,
        )
        daemon.start()
        self.strictly(daemon, "/node", "Node")
        for interface in daemon.request("GET", "/interfaces")[1]["interfaces"]:
            Draft202012Validator(strict(schema("Interface"))).validate(interface)
        for bpf, is_valid in (("udp", True), ("udp and (", False)):
            found = self.strictly(daemon, "/filters", "FilterResult", "POST", {"bpf": bpf, "interface": "lo"})
            self.assertEqual(found["valid"], is_valid)
        labels = {"requestid": "r", "customer": "c", "alertid": 1, "alertstr": "a", "tags": "t"}
        capture_id = daemon.capture(interface=["lo"], packets=1, **labels)
        self.strictly(daemon, f"/captures/{capture_id}", "Capture")
        daemon.request("GET", "/healthz")
        self.strictly(daemon, f"/captures/{capture_id}", "Capture")
        self.strictly(
            daemon, f"/captures/{daemon.capture(interface=['lo'], bpf='ip proto 99')}", "Capture", "DELETE"
        )

    def mktemp_folder(self) -> str:
        """A new directory."""
        path = os.path.abspath(self.mktemp())
        os.mkdir(path, 0o700)
        return path

    def test_without_a_token(self) -> None:
        """A node on loopback, in all phases."""
        daemon = self.daemon()
        daemon.start()
        self.run_schemathesis(daemon, "--max-examples", str(EXAMPLES))
