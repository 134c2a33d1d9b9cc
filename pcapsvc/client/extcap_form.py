"""
C{pcapctl extcap}, and what it answers without asking a node.

The protocol is that of extcap(4): Wireshark runs the program to list interfaces, link types and options, and
then to capture into a FIFO, until it ends the program.

It asks for the options of each interface, and waits for a program for each of them: so these import nothing
that talks to nodes.
"""

from __future__ import annotations

from argparse import Namespace
from urllib.parse import unquote

from pcapsvc.client.status import ExitStatus, UsageProblem
from pcapsvc.client.words import clean

#: Of the names of our interfaces.
PREFIX = "pcapctl"

#: The form: the option, its type, its title, and what it means.
FORM = (
    ("filter", "string", "Filter", "A BPF filter, see pcap-filter(7)"),
    (
        "before",
        "unsigned",
        "Seconds before the start",
        "Begin with the packets of the last seconds, if it has a history",
    ),
    ("packets", "unsigned", "Packets", "End after this many packets"),
    ("bytes", "unsigned", "Bytes", "End at this size of the file"),
    ("duration", "unsigned", "Seconds", "End after this many seconds"),
    ("snap", "unsigned", "Snap length", "Keep this many bytes of each packet"),
)
# The file itself says what is in it; Wireshark wants to know before there is one.
_LINK_TYPES = {"any": (113, "LINUX_SLL", "Linux cooked-mode capture")}
_ETHERNET = (1, "EN10MB", "Ethernet")


def extcap(options: Namespace) -> ExitStatus:
    """Run the command, as Wireshark does."""
    if options.extcap_interfaces:
        from pcapsvc.client.extcap import list_interfaces

        return list_interfaces()
    if options.extcap_interface is None:
        raise UsageProblem("--extcap-interfaces, or --extcap-interface and what to do with it, are missing")
    profile, node, interface = _parts(options.extcap_interface)
    if options.extcap_dlts:
        number, name, words = _LINK_TYPES.get(interface, _ETHERNET)
        print(f"dlt {{number={number}}}{{name={name}}}{{display={words}}}")
    elif options.extcap_config:
        for number, (name, kind, title, words) in enumerate(FORM):
            about = f"{{display={title}}}{{type={kind}}}{{tooltip={words}}}"
            print(f"arg {{number={number}}}{{call=--{name}}}{about}")
    elif options.capture:
        if options.fifo is None:
            raise UsageProblem("--fifo is missing")
        from pcapsvc.client.extcap import capture

        return capture(options, profile, node, interface)
    elif options.extcap_capture_filter is not None:
        from pcapsvc.client.extcap import check_filter

        # Whatever is printed is taken as an error.
        return check_filter(profile, node, interface, options.extcap_capture_filter)
    return ExitStatus.DELIVERED


def _parts(value: str) -> tuple[str, str, str]:
    prefix, *parts = value.split(":")
    if prefix != PREFIX or len(parts) != 3:
        raise UsageProblem(f"{clean(value)} is not an interface that --extcap-interfaces lists")
    profile, node, interface = map(unquote, parts)
    return profile, node, interface
