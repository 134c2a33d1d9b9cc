"""C{[puturl]}."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar

from msgspec import Meta, field

from pcapsvc.core.allowed_hosts import HostPattern, parse_pattern
from pcapsvc.core.compression import UNCOMPRESSED, CompressionChoice
from pcapsvc.core.put_url import PutUrlOptions, put_url_problems, several_captures_problem
from pcapsvc.core.request import OptionFields
from pcapsvc.settings.kinds import CertificatesFile, Compress, Flag, Line, converted
from pcapsvc.settings.section import BuildContext, DestinationSection

if TYPE_CHECKING:
    from pcapsvc.interfaces.delivery import IDestination


def _checked(texts: tuple[str, ...]) -> tuple[str, ...]:
    for text in texts:
        parse_pattern(text)
    return texts


class PutUrlSettings(DestinationSection, frozen=True, kw_only=True):
    """
    The URLs to which requests may have captures put.

    @ivar allow: the hosts that they may name; none disables this.
    @ivar insecure: whether they may be URLs of http.
    @ivar ca_file: the path of the certificates to verify servers with; L{None} is the platform's.
    @ivar compress: how captures are compressed.
    """

    name: ClassVar[str] = "puturl"
    table: ClassVar[str | None] = "puturl"
    switch: ClassVar[str] = "allow"

    allow: Annotated[
        tuple[Line, ...],
        Meta(max_length=64, description="a list of up to 64 host patterns"),
        converted(_checked),
    ] = ()
    insecure: Flag = False
    ca_file: CertificatesFile | None = field(name="cafile", default=None)
    compress: Compress = UNCOMPRESSED

    def is_enabled(self) -> bool:
        """Whether requests may name any host."""
        return bool(self.allow)

    def compression(self) -> CompressionChoice:
        """As C{compress} says."""
        return CompressionChoice(usual=self.compress)

    def option_fields(self) -> OptionFields:
        """The URL. Without C{allow} it is refused, rather than ignored: its sender waits for the capture."""
        return OptionFields(
            destination=self.name,
            structure=PutUrlOptions,
            check=partial(put_url_problems, patterns=self.patterns, insecure=self.insecure),
            check_several=several_captures_problem,
        )

    @property
    def patterns(self) -> tuple[HostPattern, ...]:
        """C{allow}."""
        return tuple(map(parse_pattern, self.allow))

    def build(self, context: BuildContext) -> IDestination:
        """The destination."""
        from pcapsvc.destinations.puturl.destination import PutUrlDestination

        return PutUrlDestination(
            context.reactor,
            run_in_thread=context.destination_threads(),
            look_up_in_thread={pattern.text: context.destination_threads() for pattern in self.patterns},
            patterns=self.patterns,
            insecure=self.insecure,
            ca_file=self.ca_file,
            node=context.settings.general.node_name,
        )
