"""Paths in the configuration."""

from __future__ import annotations

import os

from pcapsvc.delivery.settings import DeliverySettings
from pcapsvc.destinations.cloudshark.settings import CloudSharkSettings
from pcapsvc.destinations.local.settings import LocalSettings
from pcapsvc.settings.listen import absolute_listener, read_listener
from pcapsvc.sources.kafka.settings import KafkaSettings
from pcapsvc.sources.redis.settings import RedisSettings
from tests.unit.settings_case import SettingsTestCase


class PathsTests(SettingsTestCase):
    """Relative paths start at the directory in which the service is started."""

    def test_absolute(self) -> None:
        """Each is made absolute when it is read, because a daemon leaves that directory."""
        ours = self.issue()
        certificates, key = str(ours.certificate), str(ours.key)
        token = self.file("hunter2\n")
        relative = {path: os.path.relpath(path) for path in (certificates, key, token)}
        settings = self.load(
            f"[general]\nwritelocal = true\nlocaldir = 'a'\n[delivery]\nspooldir = 'b/../c'\n"
            f"[cloudshark]\nverify = '{relative[certificates]}'\n"
            f"[redis]\ntls = true\ncafile = '{relative[certificates]}'\n"
            "[kafka]\nsecurity_protocol = 'SASL_SSL'\nsasl_mechanism = 'OAUTHBEARER'\n"
            f"ssl_cafile = '{relative[certificates]}'\nssl_certfile = '{relative[certificates]}'\n"
            f"ssl_keyfile = '{relative[key]}'\nsasl_oauth_tokenfile = '{relative[token]}'\n"
            "[http]\nlisten = 'unix:http.sock'\n"
        )
        kafka = settings.section(KafkaSettings)
        self.assertEqual(os.path.abspath("a"), settings.section(LocalSettings).local_dir)
        self.assertEqual(os.path.abspath("c"), settings.section(DeliverySettings).spool_dir)
        self.assertEqual(
            os.path.abspath("d"),
            self.section(LocalSettings, "", redisnode="x", destdir="d", writelocal=True).local_dir,
        )
        self.assertEqual(
            [os.path.abspath(certificates)] * 2,
            [settings.section(CloudSharkSettings).verify, settings.section(RedisSettings).ca_file],
        )
        self.assertEqual([os.path.abspath(certificates)] * 2, [kafka.ssl_cafile, kafka.ssl_certfile])
        self.assertEqual(os.path.abspath(key), kafka.ssl_keyfile)
        self.assertEqual(os.path.abspath(token), kafka.sasl_oauth_token_file)

    def test_files_of_an_endpoint(self) -> None:
        """The paths of TLS files in an endpoint are made absolute too."""
        text = "ssl:1:k.pem:certKey=/c.pem:extraCertChain=x.pem:dhParameters=d.pem:interface=\\:\\:1"
        self.assertEqual(
            {
                "port": "1",
                "privateKey": os.path.abspath("k.pem"),
                "certKey": "/c.pem",
                "extraCertChain": os.path.abspath("x.pem"),
                "dhParameters": os.path.abspath("d.pem"),
                "interface": "::1",
            },
            read_listener(absolute_listener(text, os.path.abspath)).parameters,
        )

    def test_unix_socket(self) -> None:
        """The path of a unix socket is made absolute, whatever is in it; the rest stays the same."""
        for text, more in (
            ("unix:a.sock", {}),
            ("unix:address=a.sock", {}),
            ("unix:a.sock:mode=600", {"mode": "600"}),
            (r"unix:a\:b\=c\\d:lockfile=0", {"lockfile": "0"}),
        ):
            was, listen = read_listener(text), absolute_listener(text, os.path.abspath)
            address = os.path.abspath(was.parameters["address"])
            self.assertEqual({"address": address, **more}, read_listener(listen).parameters)
            self.assertTrue(read_listener(listen).local)
        for text in ("unix:/run/a.sock:mode=600", "tcp:1:interface=127.0.0.1", r"tcp6:1:interface=\:\:1"):
            self.assertEqual(text, absolute_listener(text, os.path.abspath))
