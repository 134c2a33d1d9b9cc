"""
BPF filters: what is known of one without compiling it, and how compiled ones are combined.

While libpcap compiles a filter, it looks up the names of hosts and networks, and
blocks until DNS answers. So a filter is first scanned here in the same way as
libpcap's scanner does it (pcap-filter(7); C{scanner.l} and C{grammar.y} of
libpcap 1.9), to distinguish names from addresses, numbers and keywords.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from ipaddress import IPv6Address

import msgspec
from msgspec.structs import replace

from pcapsvc.core import own_traffic
from pcapsvc.core.errors import Problem, RequestRejected, shown

# After one of these a name is that of a service, a protocol or a field's value: files or tables, no DNS.
_NAMES_ARE_LOCAL = frozenset(
    """
    port portrange proto protochain
    type subtype dir direction
    ifname on rset ruleset reason action
    """.split()
)
# After one of these, names mean the same as before it.
_CONNECTIVES = frozenset({"and", "or", "not"})
_OTHER_WORDS = frozenset(
    """
    host net gateway mask dst src
    link ether ppp slip fddi tr wlan arp rarp ip ip6
    sctp tcp udp icmp icmp6 igmp igrp pim vrrp carp ah esp radio
    less greater byte broadcast multicast inbound outbound len length
    atalk aarp decnet lat sca moprc mopdl stp ipx netbeui
    iso esis es-is isis is-is clnp csnp psnp l1 l2 iih lsp snp
    vlan mpls pppoed pppoes geneve lane llc
    metac bcc oam oamf4 oamf4ec oamf4sc sc ilmic vpi vci connectmsg metaconnect
    rnr rulenum srnr subrulenum ra ta addr1 addr2 addr3 addr4 address1 address2 address3 address4
    fisu lssu lsu msu hfisu hlssu hmsu sio opc dpc sls hsio hopc hdpc hsls
    """.split()
)
# What may follow llc: a type of frame, and a host anywhere else.
_LLC_TYPES = frozenset("i s u rr rnr rej ui ua disc dm sabme test xid frmr".split())
# The named constants of pcap-filter(7), under "expr relop expr". Those that libpcap 1.9 does not know are
# left out here, as is the word ifindex: it would look them up.
_CONSTANTS = frozenset(
    """
    icmptype icmpcode icmp-echoreply icmp-unreach icmp-sourcequench icmp-redirect icmp-echo icmp-routeradvert
    icmp-routersolicit icmp-timxceed icmp-paramprob icmp-tstamp icmp-tstampreply icmp-ireq icmp-ireqreply
    icmp-maskreq icmp-maskreply
    icmp6type icmp6code icmp6-echo icmp6-echoreply icmp6-multicastlistenerquery
    icmp6-multicastlistenerreportv1 icmp6-multicastlistenerdone icmp6-routersolicit icmp6-routeradvert
    icmp6-neighborsolicit icmp6-neighboradvert icmp6-redirect icmp6-routerrenum
    icmp6-nodeinformationquery icmp6-nodeinformationresponse icmp6-ineighbordiscoverysolicit
    icmp6-ineighbordiscoveryadvert icmp6-multicastlistenerreportv2 icmp6-homeagentdiscoveryrequest
    icmp6-homeagentdiscoveryreply icmp6-mobileprefixsolicit icmp6-mobileprefixadvert
    icmp6-certpathsolicit icmp6-certpathadvert icmp6-multicastrouteradvert icmp6-multicastroutersolicit
    icmp6-multicastrouterterm
    tcpflags tcp-fin tcp-syn tcp-rst tcp-push tcp-ack tcp-urg tcp-ece tcp-cwr
    """.split()
)
#: Keywords and named constants of newer versions than libpcap 1.9, which would look them up as names.
NEWER_WORDS = frozenset(
    """
    ifindex vxlan
    icmp6-destinationunreach icmp6-packettoobig icmp6-timeexceeded icmp6-parameterproblem
    """.split()
)
_N = r"(?:0[xX][0-9A-Fa-f]+|[0-9]+)"
_B = r"[0-9A-Fa-f]{1,2}"
_NUMBER = re.compile(_N)
_IPV4 = re.compile(rf"{_N}(?:\.{_N}){{1,3}}")
_MAC = re.compile(
    rf"{_B}(?::{_B}){{5}}|{_B}(?:-{_B}){{5}}|{_B}(?:\.{_B}){{5}}"
    r"|[0-9A-Fa-f]{4}(?:\.[0-9A-Fa-f]{4}){2}|[0-9A-Fa-f]{12}"
)
_TOKEN = re.compile(
    r"""
    (?P<bracket> [\[\]] )
    | \\(?P<escaped> [^ !()\n\t]+ )            # a name that would otherwise be a keyword
    | (?P<colons> [0-9A-Za-z_.-]*:[0-9A-Za-z_.:-]* )
    | (?P<word> [0-9A-Za-z][-_.0-9A-Za-z]* )
    """,
    re.VERBOSE,
)


def names_needing_dns(bpf: str) -> tuple[str, ...]:
    """
    The words of a filter that libpcap would look up as names of hosts or networks.

    A word that can't be classified for certain counts as one. Syntax errors are left for libpcap
    to report.
    """
    return tuple(dict.fromkeys(_host_names(bpf)))


def follows_header_chains(bpf: str) -> bool:
    """
    Whether a filter contains C{protochain}. It compiles to a loop, which the kernel doesn't
    run (C{sk_chk_filter} in net/core/filter.c, socket(7)).
    """
    return any(token["word"] == "protochain" for token in _TOKEN.finditer(bpf))


def _host_names(bpf: str) -> Iterator[str]:
    names_are_local = False
    depth = 0
    word: str | None = None
    for token in _TOKEN.finditer(bpf):
        before, word = word, token["word"]
        if token["bracket"]:
            depth += 1 if token["bracket"] == "[" else -1
        elif depth > 0:
            # The bytes of a packet, as in tcp[tcpflags] or ip[2:2]: terms, and no names at all.
            yield from (part for part in token[0].split(":") if part and not _is_term(part))
        elif token["colons"]:
            if not _is_address(token["colons"]):
                yield token["colons"]
        elif token["escaped"]:
            if not names_are_local:
                yield token["escaped"]
        elif word in _CONNECTIVES or (before == "llc" and word in _LLC_TYPES):
            continue
        elif word in _NAMES_ARE_LOCAL:
            names_are_local = True
        elif word in _OTHER_WORDS:
            names_are_local = False
        elif not (names_are_local or word in _CONSTANTS or _is_number_or_address(word)):
            yield word


def _is_term(word: str) -> bool:
    return word in _OTHER_WORDS or word in _CONSTANTS or bool(_NUMBER.fullmatch(word))


def _is_number_or_address(word: str) -> bool:
    return any(pattern.fullmatch(word) for pattern in (_NUMBER, _IPV4, _MAC))


def _is_address(word: str) -> bool:
    if _MAC.fullmatch(word):
        return True
    try:
        IPv6Address(word)
    except ValueError:
        return False
    return True


# struct sock_filter of linux/filter.h: code, jump if true, jump if false, and a constant.
_INSTRUCTION = struct.Struct("=HBBI")
# linux/bpf_common.h
_GO_ON_AT = 0x05  # BPF_JMP | BPF_JA
_RETURN = 0x06  # BPF_RET | BPF_K
# How C{inbound} and C{outbound} are compiled: BPF_LD | BPF_ABS of a word, a half or a byte, from
# SKF_AD_OFF + SKF_AD_PKTTYPE of linux/filter.h.
_LOADS = frozenset({0x20, 0x28, 0x30})
_PACKET_TYPE = 0xFFFFF004


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """
    A filter, compiled for handles of one link type and snap length.

    @ivar bpf: the filter as text, of pcap-filter(7).
    @ivar instructions: what it was compiled to: each a C{struct sock_filter}.
    @ivar is_optimized: whether libpcap's optimizer finished it. If not, it is longer and slower for each
        packet, but matches the same ones.
    @ivar compile_seconds: how long another process was busy with it; 0 if it had been compiled before.
    """

    bpf: str
    instructions: bytes
    is_optimized: bool = True
    compile_seconds: float = 0.0

    @property
    def reads_packet_type(self) -> bool:
        """Whether it depends on the direction of a packet, which is known to the kernel only."""
        return any(
            code in _LOADS and number == _PACKET_TYPE
            for code, _, _, number in _INSTRUCTION.iter_unpack(self.instructions)
        )

    def without(self, left_out: Program) -> Program:
        """A filter that matches what this one does, except what C{left_out} matches."""
        return Program(
            bpf=own_traffic.without(left_out.bpf, self.bpf),
            instructions=without(left_out.instructions, self.instructions),
            is_optimized=self.is_optimized,
        )


def everything(snap_length: int) -> Program:
    """
    The filter that matches every packet.

    @param snap_length: of the handle, in bytes.
    """
    return Program(bpf="", instructions=_INSTRUCTION.pack(_RETURN, 0, 0, snap_length))


#: The filter that matches no packet: none is as long as its text demands. libpcap itself refuses to compile
#: a filter that it finds to be false.
NOTHING = Program(bpf="greater 2000000000", instructions=_INSTRUCTION.pack(_RETURN, 0, 0, 0))


# Why a single field is at fault, in the words of libpcap (gen_vlan of gencode.c), and of
# L{pcapsvc.core.recorded_filter}.
_NO_VLANS, _NO_DIRECTION = "no VLAN support", "their direction is not recorded"
# The other fields are written without one.
_SYNTAX = "syntax error"


class FilterRejected(RequestRejected):
    """
    The sender's fault: the filter can't be used.

    @ivar compile_seconds: how long another process was busy with it.
    """

    def __init__(
        self, bpf: str, rule: str, *, compile_seconds: float = 0.0, found_vlan: bool = False
    ) -> None:
        super().__init__([Problem(path="bpf", value=shown(bpf), rule=rule)])
        self.rule = rule
        self.compile_seconds = compile_seconds
        # Whether what the field C{vlan} asks for is not at fault.
        self._found_vlan = found_vlan

    def about(self, bpf: str) -> FilterRejected:
        """The same about a filter that has this one behind a choice among VLANs, which is not at fault."""
        return FilterRejected(bpf, self.rule, compile_seconds=self.compile_seconds, found_vlan=True)

    def problems_of(self, fields: Sequence[str]) -> tuple[Problem, ...]:
        """
        The problems with the filter of a request, by the field that is at fault: C{filter} if it may be any
        of several. The filter is shown, unless the value of that field is only a part of it.

        @param fields: those that the filter is from.
        """
        rule = self.rule
        if _NO_VLANS in rule and "vlan" in fields and not self._found_vlan:
            field, rule = "vlan", f"can't be used on an interface without VLANs: {rule}"
        elif _NO_DIRECTION in rule and "direction" in fields:
            field = "direction"
        elif _SYNTAX in rule and "bpf" in fields:
            field = "bpf"
        else:
            field = fields[0] if len(fields) == 1 else "filter" if fields else "bpf"
        is_shown = field == "filter" or (field == "bpf" and len(fields) < 2)
        return tuple(
            replace(problem, path=field, value=problem.value if is_shown else None, rule=rule)
            for problem in self.problems
        )


def without(left_out: bytes, program: bytes) -> bytes:
    """
    A filter that matches what C{program} does, except what C{left_out} does.

    The programs are concatenated, which is cheap, while the time to compile a filter grows with the cube of
    its length. C{program} begins at each point at which C{left_out} returns. That is possible because neither
    assumes anything about the registers, and all jumps are relative.

    @param left_out: as compiled by libpcap: it only returns constants.
    @param program: likewise. The result is as long as both together.
    """
    return b"".join(_first(left_out)) + program


def _first(left_out: bytes) -> Iterator[bytes]:
    rest = len(left_out) // _INSTRUCTION.size
    for code, so, not_so, number in _INSTRUCTION.iter_unpack(left_out):
        rest -= 1
        if code != _RETURN:
            yield _INSTRUCTION.pack(code, so, not_so, number)
        elif number:
            yield _INSTRUCTION.pack(_RETURN, 0, 0, 0)
        else:
            yield _INSTRUCTION.pack(_GO_ON_AT, 0, 0, rest)
