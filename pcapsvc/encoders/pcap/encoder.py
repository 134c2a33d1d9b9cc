"""The pcap format, which is what captures are recorded in."""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from pcapsvc.core.artifact import PCAP_MEDIA_TYPE, PCAP_SUFFIX
from pcapsvc.core.recording import Content, Recording
from pcapsvc.interfaces.delivery import IEncoder


@implementer(IEncoder)
class PcapEncoder:
    """Delivers the recording as it is."""

    name = "pcap"
    suffix = PCAP_SUFFIX
    media_type = PCAP_MEDIA_TYPE

    def encode(self, recording: Recording) -> Deferred[Content]:
        """See L{IEncoder.encode}. The content is the recording's own."""
        return succeed(recording.content)
