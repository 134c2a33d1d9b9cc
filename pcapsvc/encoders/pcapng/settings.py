"""The settings of the pcapng format. It has no keys, and so no table."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar

from pcapsvc import __version__
from pcapsvc.settings.section import BuildContext, EncoderSection

if TYPE_CHECKING:
    from pcapsvc.interfaces.delivery import IEncoder


class PcapngSettings(EncoderSection, frozen=True, kw_only=True):
    """Captures with what is known about them: filter, counters, labels."""

    name: ClassVar[str] = "pcapng"

    def build(self, context: BuildContext) -> IEncoder:
        """The encoder."""
        from pcapsvc.encoders.pcapng.describe import Origin
        from pcapsvc.encoders.pcapng.encoder import THREADS, PcapngEncoder

        host = os.uname()
        return PcapngEncoder(
            context.patient_threads(THREADS),
            origin=Origin(
                hardware=host.machine,
                operating_system=f"{host.sysname} {host.release}",
                application=f"pcapsvc {__version__}",
            ),
        )
