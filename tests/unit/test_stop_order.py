"""Everything that can be started is started, and stopped, with the whole."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from twisted.application.service import IService
from twisted.internet.testing import MemoryReactorClock
from twisted.trial import unittest

from pcapsvc import app
from pcapsvc.components import COMPONENTS
from pcapsvc.delivery.outbox import Outbox
from pcapsvc.delivery.rounds import Rounds
from pcapsvc.delivery.spool import Spool
from pcapsvc.host.syslog import SyslogService
from pcapsvc.pipeline import Pipeline
from pcapsvc.reports.log import LogReporter
from pcapsvc.settings import load_settings

# Everything that can be switched on.
_EVERYTHING = """
[general]
writelocal = true
localdir = "{directory}"
[delivery]
spooldir = "{directory}/spool"
[syslog]
[http]
listen = "tcp:0:interface=127.0.0.1"
[redis]
listen = true
host = "127.0.0.1"
[kafka]
listen = true
server = ["127.0.0.1:9092"]
[sqs]
listen = true
url = "http://127.0.0.1:1/0/queue"
region = "us-east-1"
[cloudshark]
upload = true
host = "127.0.0.1"
token = "secret"
[s3]
upload = true
bucket = "captures"
region = "us-east-1"
[puturl]
allow = ["*"]
[sftp]
upload = true
host = "127.0.0.1"
user = "u"
keyfile = "{directory}/key"
hostkey = "{host_key}"
[webhook]
upload = true
url = "https://127.0.0.1/"
[reports.redis]
send = true
[reports.kafka]
send = true
[reports.sqs]
send = true
url = "http://127.0.0.1:1/0/events"
[manhole]
listen = "unix:{directory}/manhole.sock"
authorizedkeys = "{directory}/authorized_keys"
hostkey = "{directory}/host_key"
"""


def services() -> list[Any]:
    """Every service in this process."""
    gc.collect()
    found = []
    for one in gc.get_objects():
        try:
            if IService.implementedBy(type(one)):
                found.append(one)
        except Exception:  # noqa: BLE001 - a type that can't be asked is none of ours
            continue
    return found


class StopOrderTests(unittest.SynchronousTestCase):
    """The service that L{app.build} makes, with everything switched on."""

    def setUp(self) -> None:
        """Build it, start it and stop it; its parts only record that they were."""
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        key = Ed25519PrivateKey.generate()
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        (directory / "authorized_keys").write_bytes(public)
        (directory / "key").touch(0o600)
        (directory / "key").write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        )
        config = directory / "everything.toml"
        config.write_text(_EVERYTHING.format(directory=directory, host_key=public.decode()))
        before = {id(one): one for one in services()}
        self.settings = load_settings(str(config), COMPONENTS)
        self.root: Any = app.build(self.settings, MemoryReactorClock()).service
        self.created = [one for one in services() if id(one) not in before]
        self.calls: list[tuple[str, Any]] = []
        for one in self.created:
            if one is not self.root:
                one.privilegedStartService = lambda: None
                one.startService = lambda one=one: self.calls.append(("start", one))
                one.stopService = lambda one=one: self.calls.append(("stop", one))
        self.root.privilegedStartService()
        self.root.startService()
        self.successResultOf(self.root.stopService())

    def test_all_reached(self) -> None:
        """Every service that is created is started once and stopped once: directly, or by its parent."""
        self.assertIn(self.root, self.created)
        for one in self.created:
            top = one
            while top.parent is not None:
                top = top.parent
            if top is not self.root:
                found = [call for call, other in self.calls if other is top]
                self.assertEqual(
                    found, ["start", "stop"], f"{type(top).__qualname__} is not in the stop order once"
                )

    def test_everything(self) -> None:
        """No component is left out of these tests: a new one must be switched on above."""
        disabled = [section.name for section in self.settings.sections if not section.is_enabled()]
        self.assertEqual(disabled, [])

    def test_log(self) -> None:
        """The log of events stops after everything that reports events, and before syslog."""
        stopped = [type(one) for call, one in self.calls if call == "stop"]
        at = stopped.index(LogReporter)
        for reports in (Pipeline, Rounds, Outbox, Spool):
            self.assertLess(stopped.index(reports), at)
        [syslog] = [one for one in self.created if isinstance(one, SyslogService)]
        self.assertGreater(stopped.index(type(syslog.parent)), at)
