"""Where messages are sent to, and events come from: the URLs of C{--via} and C{--reports}."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace  # noqa: TID251 - secrets are left out of its repr
from urllib.parse import SplitResult, parse_qs, quote, unquote, urlsplit

from pcapsvc.client.status import UsageProblem
from pcapsvc.core.text import has_surrogates

#: The channel or topic of requests, and that of events, if a URL names none: the daemon's defaults.
REQUESTS, EVENTS = "capture", "capture-events"

_FORMS = (
    "redis://HOST[:PORT][/CHANNEL], rediss://…, kafka://HOST:PORT[,…][/TOPIC], kafkas://…, sqs:QUEUE-URL,"
    " http(s)://HOST[:PORT] or unix:/PATH"
)
_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


@dataclass(frozen=True, kw_only=True)
class RedisAddress:
    """
    A channel of a Redis server.

    @ivar tls: whether to connect by TLS, and to verify the server.
    """

    host: str
    port: int
    channel: str
    tls: bool
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"redis{'s' if self.tls else ''}://{_bracketed(self.host)}:{self.port}/{quote(self.channel)}"

    @property
    def option(self) -> str:
        """What to give again. It has the user, and not the password."""
        return _with_user(str(self), self.username)

    @property
    def events(self) -> RedisAddress:
        """Where the events are, unless another address is given."""
        return replace(self, channel=EVENTS)


@dataclass(frozen=True, kw_only=True)
class KafkaAddress:
    """
    A topic of a Kafka cluster.

    @ivar servers: the bootstrap servers, each C{HOST:PORT}.
    @ivar mechanism: how to log in with the user name, as SASL calls it.
    """

    servers: tuple[str, ...]
    topic: str
    tls: bool
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    mechanism: str = _MECHANISMS[0]

    def __str__(self) -> str:
        return f"kafka{'s' if self.tls else ''}://{','.join(self.servers)}/{quote(self.topic)}"

    @property
    def option(self) -> str:
        """What to give again. It has the user and the mechanism, and not the password."""
        mechanism = "" if self.mechanism == _MECHANISMS[0] else f"?sasl={self.mechanism}"
        return f"{_with_user(str(self), self.username)}{mechanism}"

    @property
    def events(self) -> KafkaAddress:
        """Where the events are, unless another address is given."""
        return replace(self, topic=EVENTS)


@dataclass(frozen=True, kw_only=True)
class SqsAddress:
    """
    A queue of Amazon SQS, or of a service that speaks its protocol.

    @ivar url: the queue's URL.
    """

    url: str

    def __str__(self) -> str:
        return f"sqs:{self.url}"

    @property
    def option(self) -> str:
        """What to give again."""
        return str(self)

    @property
    def events(self) -> None:
        """Unknown: no queue is for both."""
        return None


@dataclass(frozen=True, kw_only=True)
class HttpAddress:
    """
    The HTTP API of one node.

    @ivar path: of its unix socket; L{None} if it listens to C{host} and C{port}.
    """

    host: str = "pcapsvc"
    port: int = 80
    tls: bool = False
    path: str | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"http{'s' if self.tls else ''}://{_bracketed(self.host)}:{self.port}"

    @property
    def option(self) -> str:
        """What to give again."""
        return str(self)

    @property
    def events(self) -> HttpAddress:
        """The same node has them."""
        return self


Address = RedisAddress | KafkaAddress | SqsAddress | HttpAddress


class _Invalid(ValueError):
    """An address is invalid. The words repeat nothing of it."""


def read_address(text: str, *, default: str = REQUESTS) -> Address:
    """
    Read an address.

    @param default: the channel or topic, if the URL names none.

    @raise UsageProblem: if it is none. The message does not repeat it, because it may contain a password.
    """
    scheme, colon, rest = text.partition(":")
    if not colon:
        raise UsageProblem(f"not an address: must be {_FORMS}")
    try:
        return _read(scheme.lower(), rest, text, default)
    except _Invalid as problem:
        raise UsageProblem(f"not a valid {scheme} address ({problem}): must be {_FORMS}") from None
    except ValueError:
        # What the library says repeats the host and the port, or what it takes for them.
        raise UsageProblem(f"not a valid {scheme} address: must be {_FORMS}") from None


def read_api(text: str) -> HttpAddress:
    """
    Read the address of a node's API.

    @raise UsageProblem: if it is none.
    """
    address = read_address(text)
    if not isinstance(address, HttpAddress):
        raise UsageProblem("the API of a node must be http(s)://HOST[:PORT] or unix:/PATH")
    return address


def _read(scheme: str, rest: str, text: str, default: str) -> Address:
    match scheme:
        case "unix":
            if not rest.startswith("/"):
                raise _Invalid("the path must be absolute")
            return HttpAddress(path=rest)
        case _ if has_surrogates(text):
            raise _Invalid("not UTF-8")
        case "sqs":
            queue = urlsplit(rest)
            if queue.scheme not in ("http", "https"):
                raise _Invalid("the queue must be an http:// or https:// URL")
            _host(queue)
            _port(queue, 443)
            if queue.username is not None:
                raise _Invalid("credentials are found where Amazon's tools find them, not in the URL")
            return SqsAddress(url=rest)
        case "http" | "https":
            return _http(urlsplit(text))
        case "redis" | "rediss":
            parts = _split(text)
            if parts.query:
                raise _Invalid("in a channel, '?' is %3F")
            return RedisAddress(
                host=_host(parts),
                port=_port(parts, 6379),
                channel=unquote(parts.path.removeprefix("/")) or default,
                tls=scheme == "rediss",
                **_login(parts),
            )
        case "kafka" | "kafkas":
            return _kafka(_split(text), default)
    raise _Invalid("unknown scheme")


def _http(parts: SplitResult) -> HttpAddress:
    if parts.username is not None:
        raise _Invalid("a token belongs in a file or in PCAPCTL_TOKEN, not in the URL")
    if parts.path.rstrip("/") or parts.query or parts.fragment:
        raise _Invalid("only the host and the port")
    tls = parts.scheme == "https"
    return HttpAddress(host=_host(parts), port=_port(parts, 443 if tls else 80), tls=tls)


def _kafka(parts: SplitResult, default: str) -> KafkaAddress:
    servers = tuple(filter(None, parts.netloc.rpartition("@")[2].split(",")))
    for server in servers:
        host, _, port = server.rpartition(":")
        if not _is_host(host) or not port.isdecimal() or not 0 < int(port) < 65536:
            raise _Invalid("each server must be HOST:PORT")
    if not servers:
        raise _Invalid("no server")
    query = parse_qs(parts.query, keep_blank_values=True)
    if not parts.username and (parts.password is not None or "sasl" in query):
        raise _Invalid("without a user name, there is no login")
    mechanism = query.pop("sasl", ["PLAIN"])[-1].upper()
    if query:
        # Perhaps it is a mechanism that does not show the password to the server.
        raise _Invalid("after '?', only sasl is known")
    if mechanism not in _MECHANISMS:
        raise _Invalid(f"sasl must be one of {', '.join(_MECHANISMS)}")
    return KafkaAddress(
        servers=servers,
        topic=unquote(parts.path.removeprefix("/")) or default,
        tls=parts.scheme == "kafkas",
        mechanism=mechanism,
        **_login(parts),
    )


def _login(parts: SplitResult) -> Mapping[str, str | None]:
    found = {"username": parts.username or None, "password": parts.password}
    return {name: None if text is None else unquote(text) for name, text in found.items()}


def _split(text: str) -> SplitResult:
    """The parts of a URL that may have a password."""
    parts = urlsplit(text)
    if "@" in f"{parts.path}{parts.query}{parts.fragment}":
        # Otherwise what follows would be shown as a channel.
        raise _Invalid("in a password, '/', '?' and '#' are %2F, %3F and %23; in a channel, '@' is %40")
    if parts.fragment:
        raise _Invalid("in a channel, '#' is %23")
    return parts


def _port(parts: SplitResult, usual: int) -> int:
    if parts.port == 0:
        raise _Invalid("the port must be 1 to 65535")
    return usual if parts.port is None else parts.port


def _host(parts: SplitResult) -> str:
    if not parts.hostname:
        raise _Invalid("no host")
    if not _is_host(parts.hostname):
        raise _Invalid("the host has a blank or a control character")
    return parts.hostname


def _is_host(text: str) -> bool:
    return text.isprintable() and bool(text) and " " not in text


def _with_user(url: str, username: str | None) -> str:
    return url if username is None else url.replace("://", f"://{quote(username, safe='')}@", 1)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
