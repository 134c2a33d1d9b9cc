"""
The list of components. A new source, destination, reporter or encoder is a package of its
own, and a line here.
"""

from __future__ import annotations

from pcapsvc.delivery.settings import DeliverySettings
from pcapsvc.destinations.cloudshark.settings import CloudSharkSettings
from pcapsvc.destinations.local.settings import LocalSettings, RetentionSettings
from pcapsvc.destinations.puturl.settings import PutUrlSettings
from pcapsvc.destinations.s3.settings import S3Settings
from pcapsvc.destinations.sftp.settings import SftpSettings
from pcapsvc.destinations.webhook.settings import WebhookSettings
from pcapsvc.encoders.pcap.settings import PcapSettings
from pcapsvc.encoders.pcapng.settings import PcapngSettings
from pcapsvc.host.manhole.settings import ManholeSettings
from pcapsvc.host.settings import SyslogSettings
from pcapsvc.reports.kafka.settings import KafkaReportsSettings
from pcapsvc.reports.metrics.settings import MetricsSettings
from pcapsvc.reports.redis.settings import RedisReportsSettings
from pcapsvc.reports.settings import ReportsSettings
from pcapsvc.reports.sqs.settings import SqsReportsSettings
from pcapsvc.settings.catalogue import Catalogue
from pcapsvc.settings.general import CaptureSettings, GeneralSettings
from pcapsvc.sources.http.settings import HttpSettings
from pcapsvc.sources.kafka.settings import KafkaSettings
from pcapsvc.sources.redis.settings import RedisSettings
from pcapsvc.sources.sqs.settings import SqsSettings
from pcapsvc.web.settings import WebSettings

COMPONENTS = Catalogue(
    node=(GeneralSettings, CaptureSettings, DeliverySettings, ReportsSettings, RetentionSettings),
    sources=(RedisSettings, KafkaSettings, SqsSettings, HttpSettings),
    destinations=(
        LocalSettings,
        CloudSharkSettings,
        S3Settings,
        PutUrlSettings,
        SftpSettings,
        WebhookSettings,
    ),
    reporters=(RedisReportsSettings, KafkaReportsSettings, SqsReportsSettings),
    encoders=(PcapSettings, PcapngSettings),
    services=(SyslogSettings, ManholeSettings, WebSettings, MetricsSettings),
)
