"""Tells C{twistd} of the service. It imports nothing of ours, for every C{twistd} on this host loads it."""

from twisted.application.service import ServiceMaker

pcapsvc = ServiceMaker(
    "pcapsvc",
    "pcapsvc.tap",
    "Captures packets when a message asks for them.",
    "pcapsvc",
)
