"""A real Apache Kafka broker in a process of its own."""

from __future__ import annotations

import atexit
import base64
import contextlib
import hashlib
import json
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    NewPartitions,
    NewTopic,
    ResourcePattern,
    ResourceType,
)
from kafka.errors import KafkaError

from pcapsvc.net.kafka.security import KafkaSecurity
from peers.certificates import Authority
from peers.jars import directory_of, java_command
from peers.process import OwnProcess, answers, free_port

PROGRAM = "kafka_2.13-4.3.1"
_PATIENCE_SECONDS = 180.0
# It serves a few clients, and waits most of the time. By default it zeroes 128 MB to compact logs with,
# registers each of its metrics with JMX, and writes to the log of its metadata twice a second.
_SMALL = {
    "log.cleaner.dedupe.buffer.size": str(2 << 20),
    "metric.reporters": "",
    "metadata.max.idle.interval.ms": "0",
    "num.network.threads": "1",
    "num.io.threads": "2",
    "background.threads": "2",
}

_shared: list[KafkaBroker] = []


def _inline(module: str, **options: str) -> str:
    """The configuration of a JAAS login module, in one line."""
    words = " ".join(f'{name}="{value}"' for name, value in options.items())
    return f"org.apache.kafka.common.security.{module} required {words};"


def _digest(words: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]


def shared_broker() -> KafkaBroker:
    """
    The broker of all tests that share one, as starting it takes seconds. It runs, even if a test has killed
    it, or it has crashed, and ends with this process.
    """
    if not _shared:
        _shared.append(KafkaBroker())
        atexit.register(_shared[0].stop)
        _shared[0].start()
    elif not _shared[0].is_running:
        _shared[0].revive()
    return _shared[0]


class KafkaBroker:
    """
    A single-node broker that is its own controller (KRaft), on free ports.

    One port is plaintext, another one SASL_SSL. There, one user can log in with PLAIN, SCRAM-SHA-256 or
    SCRAM-SHA-512, and OAUTHBEARER accepts any unsigned token. Topics are created automatically, which is
    the default of brokers.

    @ivar server: C{HOST:PORT} of the plaintext port; the same after a restart.
    @ivar ports: the plaintext ports, by address.
    @ivar secure_server: C{HOST:PORT} of the SASL_SSL port.
    @ivar ca_file: the path of the certificate of the authority that issued the broker's.
    """

    user = "capture"
    password = "correct horse"

    def __init__(
        self, *, host: str = "127.0.0.1", more_hosts: Sequence[str] = (), wrapper: Sequence[str] = ()
    ) -> None:
        """
        @param host: the address of C{server}; all other ports but those of C{more_hosts} are on 127.0.0.1.
        @param more_hosts: more addresses with a plaintext port.
        @param wrapper: a prefix of the command, such as C{ip netns exec NAME}.
        """
        self._process = OwnProcess("kafka")
        self._directory = self._process.directory
        self._host, self._port = host, free_port()
        self.ports = {host: self._port, **{each: free_port() for each in more_hosts}}
        self._secure_port, controller = free_port(), free_port()
        self.server = self.server_on(host)
        self.secure_server = f"localhost:{self._secure_port}"
        authority = Authority(self._directory)
        own = authority.issue("kafka")
        self.ca_file: Path = authority.file
        store = self._directory / "kafka.pem"
        store.touch(mode=0o600)
        store.write_text(own.key.read_text() + own.certificate.read_text())
        self._file = self._directory / "server.properties"
        self._settings = self._properties(controller, store)
        self._write(self._settings)
        self._command = [*wrapper, *java_command(PROGRAM, "kafka.Kafka")]
        self._format()

    def server_on(self, host: str) -> str:
        """C{HOST:PORT} of the plaintext port on an address."""
        return f"[{host}]:{self.ports[host]}" if ":" in host else f"{host}:{self.ports[host]}"

    def _format(self) -> None:
        """
        Format the storage, or copy what another broker's was formatted to: that takes as much as the start.
        """
        format_it = java_command(PROGRAM, "kafka.tools.StorageTool")
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        credentials = [
            f"--add-scram={mechanism}=[name={self.user},password={self.password}]"
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
        ]
        # The cluster's id may begin with a dash.
        arguments = ["format", f"--cluster-id={cluster}", "--config", str(self._file), *credentials]
        kept = directory_of(PROGRAM).with_name(f"{PROGRAM}-formatted-{_digest(credentials)}")
        if kept.is_dir():
            shutil.copytree(kept, self._directory / "data")
            return
        formatted = subprocess.run([*format_it, *arguments], check=False, capture_output=True, timeout=60)
        if formatted.returncode != 0:
            said = (formatted.stdout + formatted.stderr).decode(errors="replace")
            raise RuntimeError(f"could not format the broker's storage:\n{said}")
        # Renamed when it is complete. If another process was faster, that one stays.
        new = Path(tempfile.mkdtemp(prefix=".new-", dir=kept.parent))
        try:
            shutil.copytree(self._directory / "data", new / "data")
            with contextlib.suppress(OSError):
                (new / "data").rename(kept)
        finally:
            shutil.rmtree(new)

    def _properties(self, controller_port: int, store: Path) -> dict[str, str]:
        """
        The broker's configuration.

        @param store: the file of its key and its certificate.
        """
        logins = {
            "plain": _inline("plain.PlainLoginModule", **{f"user_{self.user}": self.password}),
            "scram-sha-256": _inline("scram.ScramLoginModule"),
            "scram-sha-512": _inline("scram.ScramLoginModule"),
            "oauthbearer": _inline(
                "oauthbearer.OAuthBearerLoginModule", unsecuredLoginStringClaim_sub="broker"
            ),
        }
        # The first one is for the broker itself as well.
        names = ("CLEAR", *(f"CLEAR-{number}" for number in range(1, len(self.ports))))
        clear = ",".join(
            f"{name}://{self.server_on(host)}" for name, host in zip(names, self.ports, strict=True)
        )
        plaintext = ",".join(f"{name}:PLAINTEXT" for name in names)
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "CLEAR",
            "listeners": f"CONTROLLER://127.0.0.1:{controller_port},{clear},"
            f"SECURE://127.0.0.1:{self._secure_port}",
            "advertised.listeners": f"{clear},SECURE://{self.secure_server}",
            "listener.security.protocol.map": f"CONTROLLER:PLAINTEXT,{plaintext},SECURE:SASL_SSL",
            "listener.name.secure.ssl.keystore.type": "PEM",
            "listener.name.secure.ssl.keystore.location": str(store),
            "listener.name.secure.sasl.enabled.mechanisms": ",".join(logins).upper(),
            **{f"listener.name.secure.{name}.sasl.jaas.config": login for name, login in logins.items()},
            # Everybody may do everything, but with topics that L{allow} was called for.
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "allow.everyone.if.no.acl.found": "true",
            "super.users": "User:ANONYMOUS",
            "early.start.listeners": "CONTROLLER",
            "log.dirs": str(self._directory / "data"),
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "group.initial.rebalance.delay.ms": "0",
            # Longer than a busy machine lets it stand still: its controller would take its partitions away.
            "broker.session.timeout.ms": "60000",
            **_SMALL,
        }

    @property
    def is_running(self) -> bool:
        """Whether it was started, and has not ended since: a crash is an end, too."""
        return self._process.is_running

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._process.start(
            [*self._command, str(self._file)],
            lambda: answers(self._port, self._host) and self._knows_itself(),
            patience_seconds=_PATIENCE_SECONDS,
        )

    def revive(self) -> None:
        """Start it again, after it was killed or has crashed."""
        self._expect_return()
        self.start()

    def stop(self) -> None:
        """End it for good, even if it is frozen or not running."""
        if self._process.is_running:
            # To end properly takes it seconds, and nobody will need what it keeps.
            self._process.signal(signal.SIGKILL)
        self._process.clean_up()

    def exit(self, patience_seconds: float) -> None:
        """Let it exit by itself."""
        self._process.exit(patience_seconds)
        self._expect_return()

    def kill(self) -> None:
        """Kill it: no connection is closed properly."""
        self._process.signal(signal.SIGKILL)
        self._process.end()
        self._expect_return()

    def freeze(self) -> None:
        """Freeze its process: connections stay open, and nothing answers."""
        self._process.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume the frozen process."""
        self._process.signal(signal.SIGCONT)

    def security(self, **changed: Any) -> KafkaSecurity:
        """The settings to log in on C{secure_server}, with SCRAM-SHA-512 unless changed."""
        right = {
            "security_protocol": "SASL_SSL",
            "ssl_cafile": str(self.ca_file),
            "sasl_mechanism": "SCRAM-SHA-512",
            "sasl_plain_username": self.user,
            "sasl_plain_password": self.password,
        }
        return KafkaSecurity(**{**right, **changed})

    def token(self, lifetime_seconds: float = 3600) -> str:
        """A token that it accepts: an unsecured JWT (RFC 7519, section 6)."""
        now = int(time.time())
        claims = {"sub": self.user, "iat": now - 60, "exp": now + int(lifetime_seconds)}
        parts = [
            base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
            for part in ({"alg": "none"}, claims)
        ]
        return ".".join([*parts, ""])

    def create_topic(self, name: str, partitions: int = 1, **settings: str) -> None:
        """
        Create a topic.

        @param settings: the topic's settings, with underscores for dots: C{compression_type="zstd"}.
        """
        dotted = {key.replace("_", "."): value for key, value in settings.items()}
        self._administer("create_topics", [NewTopic(name, partitions, 1, topic_configs=dotted)])

    def allow(self, topic: str, operation: str) -> None:
        """
        Let the user do something with a topic, as an access list says it: C{WRITE}. What was not allowed is
        forbidden from then on, except on the plaintext port.
        """
        rule = ACL(
            principal=f"User:{self.user}",
            host="*",
            operation=ACLOperation[operation],
            permission_type=ACLPermissionType.ALLOW,
            resource_pattern=ResourcePattern(ResourceType.TOPIC, topic),
        )
        self._administer("create_acls", [rule])

    def delete_topic(self, name: str) -> None:
        """Delete a topic."""
        self._administer("delete_topics", [name])

    def add_partitions(self, name: str, total: int) -> None:
        """Add partitions to a topic."""
        self._administer("create_partitions", {name: NewPartitions(total)})

    def topics(self) -> set[str]:
        """All topics."""
        return set(self._administer("list_topics"))

    def producer(self, **settings: Any) -> Any:
        """A producer, which the caller closes. It waits if the broker is away."""
        return KafkaProducer(
            bootstrap_servers=self.server, acks="all", delivery_timeout_ms=180000, **settings
        )

    def produce(self, topic: str, bodies: Sequence[bytes], partition: int | None = None) -> None:
        """Send messages, and wait until the broker has acknowledged them."""
        producer = self.producer()
        try:
            sent = [producer.send(topic, body, partition=partition) for body in bodies]
            for each in sent:
                each.get(_PATIENCE_SECONDS)
        finally:
            producer.close(_PATIENCE_SECONDS)

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """The offsets that a consumer group has committed, by partition."""
        offsets = self._administer("list_group_offsets", group)[group]
        return {place.partition: mark.offset for place, mark in offsets.items() if place.topic == topic}

    def _administer(self, method: str, *args: Any) -> Any:
        admin = KafkaAdminClient(bootstrap_servers=self.server)
        try:
            return getattr(admin, method)(*args)
        finally:
            admin.close()

    def _knows_itself(self) -> bool:
        try:
            self.topics()
        except KafkaError:
            return False
        return True

    def _expect_return(self) -> None:
        """It can come back only when its controller has noticed that it was gone."""
        quick = {"broker.session.timeout.ms": "2000", "broker.heartbeat.interval.ms": "500"}
        self._write({**self._settings, **quick})

    def _write(self, settings: Mapping[str, str]) -> None:
        self._file.touch(mode=0o600)
        self._file.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
