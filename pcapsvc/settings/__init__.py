"""The configuration: a TOML file and the options of the command line, made into frozen L{Settings}."""

from pcapsvc.settings.load import load_settings
from pcapsvc.settings.options import OPTIONS, Option
from pcapsvc.settings.schema import (
    S3,
    Capture,
    CloudShark,
    Delivery,
    General,
    Http,
    InterfaceAlias,
    Kafka,
    Redis,
    Settings,
    Sqs,
    Syslog,
)
from pcapsvc.settings.secret import Secret

__all__ = [
    "OPTIONS",
    "S3",
    "Capture",
    "CloudShark",
    "Delivery",
    "General",
    "Http",
    "InterfaceAlias",
    "Kafka",
    "Option",
    "Redis",
    "Secret",
    "Settings",
    "Sqs",
    "Syslog",
    "load_settings",
]
