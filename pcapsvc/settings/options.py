"""The options of the command line, and the key of the configuration that each overrides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Option:
    """
    One option.

    @ivar name: as on the command line, without its dashes.
    @ivar section: the section of the key that it overrides, and L{key}, that
        key's name in the TOML file; L{None} where the file has no such key.
    @ivar attribute: the key's name in the settings, where the file has none.
    @ivar kind: what its value is; a flag has none, and stands for C{true}.
    """

    name: str
    section: str
    key: str
    kind: Literal["text", "number", "flag"]
    help: str

    @property
    def path(self) -> str:
        """The TOML path of the key."""
        return f"{self.section}.{self.key}"


#: All of them, by name: those of the original, with its meanings.
OPTIONS = {
    option.name: option
    for option in (
        Option(name="cshost", section="cloudshark", key="host", kind="text", help="CloudShark host."),
        Option(
            name="csscheme",
            section="cloudshark",
            key="scheme",
            kind="text",
            help="CloudShark scheme: http or https.",
        ),
        Option(
            name="cstoken",
            section="cloudshark",
            key="token",
            kind="text",
            help="CloudShark API token. Every user of this host can see it here: the key tokenfile is safer.",
        ),
        Option(name="csport", section="cloudshark", key="port", kind="number", help="CloudShark port."),
        Option(
            name="cstimeout",
            section="cloudshark",
            key="timeout",
            kind="number",
            help="Seconds that an upload to CloudShark may take; 0 is no limit.",
        ),
        Option(
            name="redischannel",
            section="redis",
            key="channel",
            kind="text",
            help="Redis channel to subscribe to. Like each option of Redis, it switches listening on, "
            "unless the configuration says listen = false.",
        ),
        Option(
            name="redisnode",
            section="redis",
            key="host",
            kind="text",
            help="Host name or address of the Redis server.",
        ),
        Option(name="redisport", section="redis", key="port", kind="number", help="Port of Redis."),
        Option(
            name="upload",
            section="cloudshark",
            key="upload",
            kind="flag",
            help="Upload captures to CloudShark.",
        ),
        Option(
            name="writelocal",
            section="general",
            key="writelocal",
            kind="flag",
            help="Write captures to a local folder. Needs --destdir, or the key localdir.",
        ),
        Option(
            name="destdir",
            section="general",
            key="localdir",
            kind="text",
            help="Folder for captures that are written locally.",
        ),
        Option(
            name="maxpackets",
            section="general",
            key="maxpackets",
            kind="number",
            help="Maximum number of packets per capture.",
        ),
        Option(
            name="panic",
            section="general",
            key="panic",
            kind="flag",
            help="End a capture with a failure where a packet of it cannot be decoded for the log.",
        ),
    )
}
