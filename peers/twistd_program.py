"""C{twistd}, as a program of L{peers.nursery_process}."""

from __future__ import annotations

from twisted.scripts import twistd

#: What daemons of tests import: all for HTTP and a local directory, many for brokers and S3. The rest
#: follows from these.
PRELOADED = (
    "boto3",
    "dpkt",
    "kafka",
    "pcapsvc.tap",
    "pcapsvc.app",
    "pcapsvc.destinations.local.destination",
    "pcapsvc.destinations.s3.destination",
    "pcapsvc.encoders.pcap.encoder",
    "pcapsvc.encoders.pcapng.encoder",
    "pcapsvc.reports.metrics.resource",
    "pcapsvc.reports.metrics.state",
    "pcapsvc.sources.http.routes",
    "pcapsvc.sources.kafka.source",
    "pcapsvc.sources.sqs.source",
    "pcapsvc.web.api",
    "twisted.plugins",
    "unittest",
)
#: A daemon imports this with its reactor, when it has decided whether it needs TLS.
NOT_PRELOADED = "twisted.internet.tcp"


def main() -> int:
    """Run it. The exit status."""
    twistd.run()
    return 0
