"""What a pcapng file says about its capture, besides the packets."""

from __future__ import annotations

import msgspec

from pcapsvc.core.pcapng_file import interface_description, interface_statistics, section_header
from pcapsvc.core.recording import Recording


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """
    Where files come from.

    @ivar hardware: the kind of machine.
    @ivar operating_system: its name and version.
    @ivar application: this program, and its version.
    """

    hardware: str
    operating_system: str
    application: str


def before_packets(
    recording: Recording, origin: Origin, *, link_type: int, snap_length: int, digits: int
) -> tuple[bytes, bytes]:
    """
    The blocks before the packets: the section header, and the description of the interface.

    Wireshark's window shows no comment but that of the section, an alias in place of the name, and a filter
    only up to a C{<}. So the section repeats what is said of the interface.

    @param link_type: as in the recording's file. So is C{snap_length}, in bytes.
    @param digits: how many decimal digits its time stamps have after the second.
    """
    plan = recording.plan
    comment = _comment(recording)
    section_comment = (
        f"node: {plan.node}\ninterface: {plan.interface}\ncapture: {recording.capture_id}\n{comment}"
    )
    if plan.bpf:
        section_comment += f"\nfilter: {plan.bpf}"
    header = section_header(
        hardware=origin.hardware,
        operating_system=origin.operating_system,
        application=origin.application,
        comment=section_comment,
    )
    return header, interface_description(
        link_type=link_type,
        snap_length=snap_length,
        name=plan.interface,
        description=plan.alias,
        bpf=plan.bpf,
        digits=digits,
        comment=comment,
    )


def after_packets(recording: Recording, *, digits: int) -> bytes:
    """The block behind the packets: the statistics of the interface."""
    unit = 10**digits
    return interface_statistics(
        started=round(recording.started * unit),
        ended=None if recording.ended is None else round(recording.ended * unit),
        counts=recording.counts,
        packets=recording.packets,
        comment=_counts(recording),
    )


def _comment(recording: Recording) -> str:
    """The labels of the request, what became of the capture, and what few programs show of its counters."""
    labels = recording.plan.labels
    said = {
        "requestid": labels.requestid,
        "alertid": labels.alertid,
        "customer": labels.customer,
        "tags": labels.tags,
        "reason": recording.reason.value,
        "packets": _counts(recording),
    }
    return "\n".join(f"{name}: {value}" for name, value in said.items() if value is not None)


def _counts(recording: Recording) -> str | None:
    """The counters in words; L{None} if they are unknown."""
    counts = recording.counts
    if counts is None:
        return None
    words = f"{counts.received} received, {counts.dropped} dropped by the kernel"
    if counts.interface_dropped is not None:
        words += f", {counts.interface_dropped} dropped by the interface"
    return words
