"""
The functions to fuzz. Each takes bytes, and returns if the bytes are accepted, or properly rejected. Whatever
it raises is a finding.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pcapsvc.components import COMPONENTS
from pcapsvc.core.allowed_hosts import parse_pattern
from pcapsvc.core.compression import CHOICES
from pcapsvc.core.errors import Problem, RequestRejected, SettingsError
from pcapsvc.core.folder import PLACEHOLDERS
from pcapsvc.core.node import NodeMatcher
from pcapsvc.core.plan import NodeView, plan_captures
from pcapsvc.core.put_url import PutUrlOptions, put_url_problems, several_captures_problem
from pcapsvc.core.request import (
    OptionFields,
    RequestBounds,
    RequestFields,
    StopRequest,
    parse_request,
    read_address,
)
from pcapsvc.destinations.s3.options import S3_FIELDS, S3Options, check_options
from pcapsvc.settings import load_settings
from pcapsvc.settings.interface import interface_keys

_ALIASES = {"uplink": ("eth0", "eth1"), "inside": ("eth1",), "y": ()}
#: The limits of the node to which messages are sent.
BOUNDS = RequestBounds(
    max_packets=50_000,
    max_bytes=100_000_000,
    max_timeout_seconds=300,
    max_duration_seconds=3600,
    max_snap_length=262_144,
    max_filter_characters=512,
    aliases=frozenset(_ALIASES),
    formats=("pcap", "pcapng"),
    options=(
        OptionFields(
            destination="s3",
            structure=S3Options,
            check=partial(
                check_options,
                allowed=frozenset({"bucket", "folder", "acl", "endpoint", "storageclass", "kmskeyid"}),
                endpoints=("https://s3.amazonaws.com",),
            ),
        ),
        OptionFields(
            destination="puturl",
            structure=PutUrlOptions,
            check=partial(put_url_problems, patterns=(parse_pattern("*.amazonaws.com"),), insecure=False),
            check_several=several_captures_problem,
        ),
    ),
)
_NODE = NodeView(
    name="sensor1",
    bounds=BOUNDS,
    default_timeout_seconds=60,
    snap_length=512,
    interfaces_by_alias=_ALIASES,
)


# The time at which requests are planned, in seconds since the Unix epoch.
_NOW = 1_700_000_000.0


# What filters are written from, if the message has none of its own.
_OURS = re.compile(
    r"(?:and|or|host|net|src|dst|port|portrange|proto|vlan|inbound|outbound|ip6?|r?arp|icmp6?|igmp|tcp|udp|sctp|ah"
    r"|esp|pim|tcp-[a-z]+|tcpflags|ether|0x[0-9a-f]+|[0-9a-f.:/-]+|!=|[][()&|=<: ])*"
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """
    A function to fuzz.

    @ivar run: the function; whatever it raises is a finding.
    @ivar seeds: the initial inputs, all of which are accepted.
    @ivar words: words of the language of the inputs.
    @ivar max_bytes: the maximum length of an input.
    """

    run: Callable[[bytes], bool]
    seeds: tuple[bytes, ...]
    words: tuple[str, ...]
    max_bytes: int


def request(body: bytes) -> bool:
    """
    Parse a message and plan its captures.

    @return: whether it was accepted.
    """
    try:
        request = parse_request(body, _NODE.bounds)
        plans = [] if isinstance(request, StopRequest) else plan_captures(request, _NODE, "fuzz", now=_NOW)
    except RequestRejected as rejection:
        _check_problems(rejection.problems)
        return False
    for plan in plans:
        if not (plan.interface and 0 < plan.most_bytes <= _NODE.bounds.max_bytes):
            raise AssertionError(f"a plan is out of bounds: {plan!r}")
        if not (plan.request.bpf or _OURS.fullmatch(plan.bpf)):
            raise AssertionError(f"text of the message is in the filter: {plan.bpf!r}")
    return True


def address(body: bytes) -> bool:
    """
    Decide whether a message is for this node.

    @return: whether its address was valid.
    """
    try:
        read = read_address(body)
        NodeMatcher(_NODE.name).matches(read.node, read.nodere)
    except RequestRejected as rejection:
        _check_problems(rejection.problems)
        return False
    return True


def settings(text: bytes) -> bool:
    """
    Load a configuration.

    @return: whether it was accepted.
    """
    # A file without a name, because a name would appear in every message.
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(text)
        try:
            load_settings(f"/proc/self/fd/{file.fileno()}", COMPONENTS)
        except SettingsError as error:
            _check_problems(error.problems)
            return False
    return True


def _check_problems(problems: tuple[Problem, ...]) -> None:
    """There are problems, and each is a single line, whatever the input contains."""
    if not problems:
        raise AssertionError("rejected without a reason")
    for problem in problems:
        if any(character < " " or character in "\x7f\x85\u2028\u2029" for character in str(problem)):
            raise AssertionError(f"not a single line: {str(problem)!r}")


_MESSAGES = (
    b'{"node": "any", "interface": ["lo"], "packets": 5}',
    b'{"nodere": "^sensor[0-9]+$", "alias": ["uplink", "inside"], "bpf": "tcp port 80 and host 192.0.2.1",'
    b' "tags": "one,two", "customer": "ACME", "snap": 128, "alertid": 655443, "alertstr": "A-17"}',
    b'{"node": "sensor1", "interface": ["eth0", "eth1.100"], "timeout": 15, "duration": 60, "bytes": 1000,'
    b' "bpf": "ip6 net 2001:db8::/32 or (vlan 5 and tcp[tcpflags] & tcp-syn != 0)",'
    b' "packetdebug": true, "logrequest": false}',
    b'{"node": "sensor1", "interface": ["eth0"], "folder": "my/folder", "bucket": "my-bucket",'
    b' "acl": "public-read", "endpoint": "s3.amazonaws.com"}',
    b'{"node": "any", "interface": ["lo"], "format": "pcapng", "compress": "zstd",'
    b' "storageclass": "GLACIER_IR", "kmskeyid": "alias/captures", "folder": "{node}/{date}/{customer}"}',
    b'{"node": "sensor1", "interface": ["eth0", "eth1"], "puturl":'
    b' "https://b.s3.amazonaws.com/{node}/{interface}-{id}.pcap?sv=2024-11-04&sig=abc%3D"}',
    b'{"node": "any", "interface": ["lo"], "host": ["192.0.2.1", "2001:db8::1"], "net": "10.0.0.0/8",'
    b' "port": [80, 0], "portrange": "8000-8100", "protocol": ["tcp", 47], "flags": ["syn", "rst"],'
    b' "bpf": "(udp) or vlan 5"}',
    b'{"node": "any", "interface": ["lo"], "src": ["192.0.2.1:443", "[2001:db8::1]:80", "2001:db8::/47"],'
    b' "dst": "2001:db8::/47", "vlan": [0, 7], "direction": ["in", "out"]}',
    b'{"node": "", "nodere": "(?i)SENSOR", "alias": ["y"], "interface": [], "snap": 0, "region": null}',
)
_EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
_CONFIGURATIONS = (
    *((_EXAMPLES / name).read_bytes() for name in ("quickstart.toml", "pcapsvc.toml")),
    b'[general]\nwritelocal = true\nlocaldir = "captures"\n[http]\nlisten = "unix:socket:mode=600"\n',
    b'[general]\nwritelocal = true\nlocaldir = "/tmp"\nnodename = "sensor-1"\n[redis]\nlisten = true\n'
    b'[delivery]\nspooldir = "spool"\ntimeout = 0\n[[interface]]\nname = "eth0"\nalias = ["main"]\n',
    b'[general]\nwritelocal = true\nlocaldir = "/tmp"\n[local]\nmaxsize = 1\nmaxage = 2\n[http]\n'
    b'listen = "unix:s:mode=600"\n[s3]\nfolder = "a/{node}/{{x}}"\nstorageclass = "GLACIER"\n'
    b'kmskeyid = "alias/x"\n'
    b'[sftp]\nhost = "h"\nuser = "u"\ndirectory = "/a/{date}"\nhostkey = ["ssh-ed25519 '
    b'AAAAC3NzaC1lZDI1NTE5AAAAIF9h6rLqZE7x7Rk2bU2mvA0kE2Q3lVQJc7pT0s1yHkQe"]\n',
    b'[s3]\nupload = true\noverrides = ["bucket"]\nendpoints = ["https://[2001:db8::1]:9000"]\n'
    b'[kafka]\nlisten = true\nserver = ["[::1]:9092", "b:1"]\nsecurity_protocol = "SASL_PLAINTEXT"\n'
    b'sasl_mechanism = "PLAIN"\nsasl_plain_username = "u"\nsasl_plain_password = "p"\n',
    b'[http]\nlisten = "tcp:1:interface=127.0.0.1"\n[local]\nmaxsize = 1\nmaxage = 1\n'
    b'[puturl]\nallow = ["*.amazonaws.com", "[fd00::1]:*", "10.0.0.1:8443"]\ninsecure = true\n'
    b'[webhook]\nupload = true\nurl = "https://[::1]:8443/a?b"\nsend = "event"\nsecret = "s3cr3ts3cr3t"\n',
)

_JSON = (
    '"',
    '":',
    "[",
    "]",
    "{",
    "}",
    "null",
    "true",
    "false",
    "-1",
    "1e9",
    "9223372036854775808",
    "\\u0000",
)
_JSON += ("\\ud800", "\\n", "\\u2028")
_TOML = ("[", "[[", "]]", ' = "', "'''", '"""', "true", "false", "1979-05-27T07:32:00Z", "inf", "0x7f", "\\n")
_TOML += ("\\u2028", '\\"', "{}", "[[interface]]\n")

_URLS = (
    '"puturl":',
    "https://",
    "s3.amazonaws.com",
    "{id}",
    "{interface}",
    "%2e",
    "X-Amz-SignedHeaders=",
    "[::1]",
)

_PLACES = (
    "::ffff:192.0.2.1",
    "%eth0",
    "/24",
    "/0",
    "]:",
    "-65535",
    "255",
    " or ",
    ") or (",
    "\\u0663",
    "icmp6",
)

#: All targets, by name.
TARGETS: Mapping[str, Target] = {
    "request": Target(
        run=request,
        seeds=_MESSAGES,
        words=(
            *_JSON,
            '"stop":',
            *(f'"{name}":' for name in RequestFields.__struct_fields__),
            *S3_FIELDS,
            *_URLS,
            *_PLACES,
            *(f'"{name}"' for name in (*BOUNDS.formats, *CHOICES)),
            *(f"{{{name}}}" for name in PLACEHOLDERS),
        ),
        max_bytes=4096,
    ),
    "address": Target(
        run=address,
        seeds=_MESSAGES,
        words=(*_JSON, '"node":', '"nodere":', "(?i)", "(?P<", "[[:alpha:]]", "{1000}", "\\\\pN", "\\\\C"),
        max_bytes=2048,
    ),
    "settings": Target(
        run=settings,
        seeds=_CONFIGURATIONS,
        words=(
            *_TOML,
            *(f"[{table}]\n" for table in COMPONENTS.tables()),
            *sorted(
                {f"\n{key} = " for keys in (*COMPONENTS.tables().values(), interface_keys()) for key in keys}
            ),
            *("tcp:", "unix:", "systemd:", "ssl:", "interface=", "https://"),
        ),
        max_bytes=16384,
    ),
}
