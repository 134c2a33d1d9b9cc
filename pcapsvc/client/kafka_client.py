"""The client behind a consumer or a producer of kafka-python (version 3.0). It is imported only for Kafka."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kafka.net.compat import KafkaNetClient
from kafka.net.inet import create_connection
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector

from pcapsvc.bounded import kafka_batches
from pcapsvc.bounded.kafka_transport import make_transport


def make_client(failed: Callable[[Exception], None], **configuration: Any) -> Any:
    """
    Make a client.

    @param failed: called with the reason whenever a connection can't be made. The library only logs it.
    """
    kafka_batches.bound()
    net = NetworkSelector(**configuration)
    client = KafkaNetClient(net=net, manager=_Manager(failed, net, **configuration), **configuration)
    # The setting that brokers are not to create topics has no effect otherwise.
    client.cluster.config["allow_auto_create_topics"] = False
    return client


class _Manager(KafkaConnectionManager):  # type: ignore[misc] # kafka-python has no types
    def __init__(self, failed: Callable[[Exception], None], net: Any, **configuration: Any) -> None:
        super().__init__(net, **configuration)
        self._failed = failed

    async def _build_transport(self, node: Any, timeout_at: float) -> Any:
        options = self.config["socket_options"]
        try:
            plain = await create_connection(self._net, node.host, node.port, options, timeout_at=timeout_at)
            return await make_transport(self, node, plain, timeout_at)
        except Exception as problem:
            self._failed(problem)
            raise
