"""The C{twistd} plugin. It imports nothing of pcapsvc, because every C{twistd} on this host loads it."""

from twisted.application.service import ServiceMaker

pcapsvc = ServiceMaker(
    "pcapsvc",
    "pcapsvc.tap",
    "Captures packets on request.",
    "pcapsvc",
)
