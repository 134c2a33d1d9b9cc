"""The settings of the pcap format. It has no keys, and so no table."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pcapsvc.settings.section import BuildContext, EncoderSection

if TYPE_CHECKING:
    from pcapsvc.interfaces.delivery import IEncoder


class PcapSettings(EncoderSection, frozen=True, kw_only=True):
    """Captures as they are recorded."""

    name: ClassVar[str] = "pcap"

    def build(self, context: BuildContext) -> IEncoder:
        """The encoder."""
        from pcapsvc.encoders.pcap.encoder import PcapEncoder

        return PcapEncoder()
