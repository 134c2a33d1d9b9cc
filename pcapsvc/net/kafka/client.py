"""The client behind a consumer or a producer of kafka-python (version 3.0)."""

from __future__ import annotations

import ssl
from collections.abc import Collection, Sequence
from threading import Event, Lock
from typing import Any

from kafka import errors as kafka_errors
from kafka.net.selector import NetworkSelector

from pcapsvc.net.kafka.manager import Client, Manager
from pcapsvc.net.kafka.problems import MissingTopic
from pcapsvc.net.kafka.security import KafkaSecurity, Unreachable
from pcapsvc.net.kafka.token import TokenFile

#: How long all servers together have to answer, once one of them accepts connections.
BOOTSTRAP_SECONDS = 10.0

#: How long an answer may take before a broker counts as lost.
REQUEST_SECONDS = 10.0

#: How often the topic's partitions are requested.
METADATA_SECONDS = 10.0

#: The longest pause before connecting again to a broker that was lost, give or take a random fifth.
RECONNECT_SECONDS = 5.0

#: How often the topic is requested before it counts as missing. An answer may belong to an earlier request,
#: which was about something else.
TOPIC_ATTEMPTS = 3


def in_ms(seconds: float) -> int:
    """A time in milliseconds."""
    return int(seconds * 1000)


class ClientMaker:
    """
    Makes the client of one consumer or producer, which is given this as its C{kafka_client}. So the client
    can be closed if the consumer or producer fails, which would leak its thread and descriptors.

    @ivar client: the client; L{None} if it was not made yet.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._is_aborted = False
        self._manager: Manager | None = None
        self.client: Any = None

    def __call__(self, **configuration: Any) -> Any:
        """
        Make the client.

        @raise Unreachable: if it was aborted before.
        """
        net = NetworkSelector(**configuration)
        self._manager = Manager(net, **configuration)
        client = Client(net=net, manager=self._manager, **configuration)
        with self._lock:
            self.client = client
            is_aborted = self._is_aborted
        if is_aborted:
            raise Unreachable("connecting was aborted")
        return client

    def abort(self) -> None:
        """From any thread: close every connection. A method that is blocked raises."""
        with self._lock:
            self._is_aborted = True
        if self.client is not None:
            self.client.close()

    def raise_refusal(self) -> None:
        """Raise why authentication failed, if it did."""
        if self._manager is not None and self._manager.refusal is not None:
            raise self._manager.refusal

    def look_for_topic(self, topic: str, request_seconds: float, *, to_write: bool = False) -> None:
        """
        Request the partitions of a topic.

        @param to_write: whether it must be permitted to write to it, as far as the brokers tell.

        @raise MissingTopic: if the topic does not exist.
        @raise kafka_errors.KafkaError: if the brokers refuse, or don't answer.
        """
        cluster = self.client.cluster
        rights = _Rights(cluster) if to_write else None
        cluster.set_topics([topic])
        for _ in range(TOPIC_ATTEMPTS):
            # The library's own ways to request metadata may wait forever.
            answered = Event()
            cluster.request_update().add_both(lambda _, answered=answered: answered.set())
            if not answered.wait(request_seconds):
                raise kafka_errors.KafkaTimeoutError("no metadata of the topic")
            is_forbidden = rights is not None and not rights.may_write(topic)
            if is_forbidden or topic in cluster.unauthorized_topics:
                raise kafka_errors.TopicAuthorizationFailedError({topic})
            if cluster.available_partitions_for_topic(topic):
                return
        raise MissingTopic


class _Rights:
    """
    What the brokers permit to do with topics. They tell it with the metadata, if they are asked to, from
    version 2.3 on (KIP-430 of Apache Kafka). The library doesn't ask, and forgets the answer.

    @param cluster: the library's memory of metadata. It asks from now on.
    """

    # AclOperation.java.
    _WRITE, _DESCRIBE = 4, 8

    def __init__(self, cluster: Any) -> None:
        self._operations: dict[str, Collection[int]] = {}
        self._request, self._update = cluster.metadata_request, cluster.update_metadata
        cluster.metadata_request, cluster.update_metadata = self._asking, self._answered

    def may_write(self, topic: str) -> bool:
        """Whether it is permitted to write to a topic; also if that isn't known."""
        operations = self._operations.get(topic, ())
        # Who is told about a topic may be told about it: without that, it isn't an answer.
        return self._DESCRIBE not in operations or self._WRITE in operations

    def _asking(self) -> Any:
        request = self._request()
        request.include_topic_authorized_operations = True
        return request

    def _answered(self, metadata: Any) -> Any:
        self._operations = {
            each.name: getattr(each, "authorized_operations", None) or () for each in metadata.topics or ()
        }
        return self._update(metadata)


def connection_configuration(
    servers: Sequence[str], client_id: str, security: KafkaSecurity, context: ssl.SSLContext | None
) -> dict[str, Any]:
    """
    What a consumer and a producer are configured with to connect.

    @param context: see L{pcapsvc.net.kafka.security.tls_context}.
    """
    token_file = security.sasl_oauth_token_file
    return {
        "bootstrap_servers": list(servers),
        "client_id": client_id,
        "metrics_enabled": False,
        "security_protocol": security.security_protocol,
        "ssl_context": context,
        "ssl_check_hostname": security.ssl_check_hostname,
        "sasl_mechanism": security.sasl_mechanism,
        "sasl_plain_username": security.sasl_plain_username,
        "sasl_plain_password": security.sasl_plain_password,
        "sasl_oauth_token_provider": None if token_file is None else TokenFile(token_file),
    }
