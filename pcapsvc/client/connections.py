"""From options, the environment and the profile to the ways to the nodes."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from shlex import quote

from pcapsvc.client.address import (
    EVENTS,
    Address,
    HttpAddress,
    RedisAddress,
    SqsAddress,
    read_address,
    read_api,
)
from pcapsvc.client.api import ANSWER_SECONDS, NodeApi
from pcapsvc.client.at_once import at_once
from pcapsvc.client.credentials import Credentials, is_trusted
from pcapsvc.client.profile import (
    PASSWORD_VARIABLE,
    TOKEN_VARIABLE,
    choose_profile,
    read_secret,
    texts,
)
from pcapsvc.client.status import ClientError, UsageProblem
from pcapsvc.client.transport import ITransport
from pcapsvc.core.mask import of_process
from pcapsvc.core.text import has_surrogates

# The options that a command needs again to get to the same nodes, and where they are.
_AGAIN = (
    ("profile", "profile"),
    ("tokenfile", "token_file"),
    ("passwordfile", "password_file"),
    ("cafile", "ca_file"),
)


class Connections:
    """
    The ways to the nodes. Nothing is connected yet.

    @ivar profile: the profile that was chosen.
    @ivar via: where requests are sent.
    @ivar reports: where events come from; empty if that is unknown.
    @ivar apis: the APIs of nodes that are known.
    @ivar options: those that lead there again, on a command line. They have no secrets.
    """

    def __init__(self, options: Namespace, environment: Mapping[str, str]) -> None:
        """
        @param options: with C{profile}, C{via}, C{reports}, C{api}, C{token_file}, C{password_file} and
            C{ca_file}. Those that a command does not have are left out.

        @raise UsageProblem: if an address or a file can't be used.
        """
        given = vars(options).get
        self.profile = choose_profile(given("profile"), environment)
        self.via = [read_address(text) for text in given("via") or texts(self.profile.via)]
        again = [(name, str(given(key))) for name, key in _AGAIN if given(key)]
        again += [("via", each.option) for each in self.via if given("via")]
        self.options = "".join(f"--{name} {quote(value)} " for name, value in again)
        # An API that was given with the command replaces those of the profile, as --via does.
        named = given("api") or (() if given("via") else texts(self.profile.apis))
        patterns = [read_api(text) for text in named]
        self._named_apis = [each for each in patterns if "*" not in str(each)]
        self._is_api_given = bool(given("api")) and not (given("via") or given("reports"))
        self.apis = [*self._http(self.via), *self._named_apis]
        self.reports = self._reports(
            given("reports") or (() if given("via") else texts(self.profile.reports))
        )
        trusted = [*self._http(self.via), *self._http(self.reports), *patterns]
        self.credentials = Credentials(
            token=_secret(given("token_file"), environment.get(TOKEN_VARIABLE), self.profile.tokenfile),
            password=_secret(
                given("password_file"), environment.get(PASSWORD_VARIABLE), self.profile.passwordfile
            ),
            ca_file=given("ca_file") or self.profile.cafile,
            trusted=tuple(map(str, trusted)),
        )
        _check_secrets(self.credentials)
        if self.credentials.ca_file is not None:
            # Now, as it isn't the fault of any node.
            self.credentials.trust()
        self._hide()

    def transport(self, address: Address) -> ITransport:
        """The way to an address. Its library is imported now."""
        if isinstance(address, HttpAddress):
            from pcapsvc.client.transports.http import HttpTransport

            return HttpTransport(self.api(address))
        if isinstance(address, RedisAddress):
            from pcapsvc.client.transports.redis import RedisTransport

            return RedisTransport(address, self.credentials)
        if isinstance(address, SqsAddress):
            from pcapsvc.client.transports.sqs import SqsTransport

            return SqsTransport(address, self.credentials)
        from pcapsvc.client.transports.kafka import KafkaTransport

        return KafkaTransport(address, self.credentials)

    def api(self, address: HttpAddress, *, answer_seconds: float = ANSWER_SECONDS) -> NodeApi:
        """The API of a node, which has so long to answer: see L{NodeApi}."""
        return NodeApi(address, self.credentials, answer_seconds=answer_seconds)

    def needed_via(self) -> Sequence[Address]:
        """
        Where requests are sent.

        @raise UsageProblem: if that is unknown.
        """
        if not self.via:
            raise UsageProblem("--via is missing, and there is no profile that has 'via'")
        return self.via

    def needed_apis(self, *, answer_seconds: float = ANSWER_SECONDS) -> Sequence[NodeApi]:
        """
        The APIs of the nodes, which have so long to answer: see L{NodeApi}.

        @raise UsageProblem: if none is known.
        """
        # Not those of the profile, if others are given with the command.
        apis = self._named_apis if self._is_api_given else self.apis
        if not apis:
            raise UsageProblem(
                "this needs the HTTP API of the nodes: --api http(s)://HOST:PORT, or 'apis' in the profile"
            )
        return [self.api(address, answer_seconds=answer_seconds) for address in dict.fromkeys(apis)]

    def needed_reports(self) -> Sequence[Address]:
        """
        Where events come from.

        @raise UsageProblem: if that is unknown.
        """
        if not self.reports:
            raise UsageProblem("--reports is missing: where do the nodes publish their events?")
        return self.reports

    def watched(self) -> Sequence[Address]:
        """
        Where the events of all requests come from: the APIs of nodes, if those are what is given with the
        command, or all that is known.

        @raise UsageProblem: if that is unknown.
        """
        if self._named_apis and (self._is_api_given or not self.reports):
            return list(dict.fromkeys(self._named_apis))
        if not self.reports and not self.via:
            raise UsageProblem(
                "--via, --reports or --api is missing, and no profile says where events come from"
            )
        return self.needed_reports()

    def _reports(self, given: Iterable[str]) -> list[Address]:
        named = [read_address(text, default=EVENTS) for text in given]
        if named:
            return named
        return [address for address in (each.events for each in self.via) if address is not None]

    def _http(self, addresses: Iterable[Address]) -> list[HttpAddress]:
        return [address for address in addresses if isinstance(address, HttpAddress)]

    def _hide(self) -> None:
        passwords = (getattr(address, "password", None) for address in chain(self.via, self.reports))
        secrets = [self.credentials.token, self.credentials.password, *passwords]
        of_process.hide(secret for secret in secrets if secret)


class NodeNames:
    """The names of nodes whose API is known, and their APIs by name. Each is asked once."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._names: dict[HttpAddress, str | None] = {}

    def name(self, address: HttpAddress) -> str | None:
        """The name of the node at an address; L{None} if it doesn't say."""
        if address not in self._names:
            try:
                name = self._connections.api(address).call("GET", "/node").get("name")
            except (ClientError, AttributeError):
                name = None
            self._names[address] = name if isinstance(name, str) else None
        return self._names[address]

    def api(self, node: str, url: str | None) -> NodeApi:
        """
        The API of a node. One that is named by an option or the profile goes before what the node says: that
        may be an address that only others can reach, and isn't sent the token.

        @param url: where it says that its API is.

        @raise ClientError: if it is unknown.
        """
        said = None
        with suppress(UsageProblem):
            said = None if url is None else read_api(url)
        if said is not None and is_trusted(said, self._connections.credentials.trusted):
            return self._connections.api(said)
        apis = self._connections.apis
        for address, name in zip(apis, at_once(self.name, apis), strict=True):
            if name == node:
                return self._connections.api(address)
        if said is not None:
            return self._connections.api(said)
        raise ClientError(f"the API of {node} is unknown: neither its events nor --api say where it is")


def _secret(option: str | None, variable: str | None, key: str | None) -> str | None:
    if option is not None:
        return read_secret(option)
    return variable or (None if key is None else read_secret(key))


def _check_secrets(credentials: Credentials) -> None:
    """
    Check that secrets can be sent.

    @raise UsageProblem: if one can't, without a part of it.
    """
    if not (credentials.token or "").isprintable():
        raise UsageProblem("the token must consist of printable characters, in UTF-8")
    if has_surrogates(credentials.password or ""):
        raise UsageProblem("the password is not UTF-8")
