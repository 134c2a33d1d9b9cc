"""From options, the environment and the profile to the ways to the nodes."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
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
from pcapsvc.client.api import NodeApi
from pcapsvc.client.credentials import Credentials
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
        self.options = "".join(f"--via {quote(str(each))} " for each in self.via) if given("via") else ""
        if name := given("profile"):
            self.options = f"--profile {quote(name)} {self.options}"
        # An API that was given with the command replaces those of the profile, as --via does.
        named = given("api") or (() if given("via") else texts(self.profile.apis))
        patterns = [read_api(text) for text in named]
        self.apis = [*self._http(self.via), *(each for each in patterns if "*" not in str(each))]
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

            return SqsTransport(address)
        from pcapsvc.client.transports.kafka import KafkaTransport

        return KafkaTransport(address, self.credentials)

    def api(self, address: HttpAddress) -> NodeApi:
        """The API of a node."""
        return NodeApi(address, self.credentials)

    def needed_via(self) -> Sequence[Address]:
        """
        Where requests are sent.

        @raise UsageProblem: if that is unknown.
        """
        if not self.via:
            raise UsageProblem("--via is missing, and there is no profile that has 'via'")
        return self.via

    def needed_apis(self) -> Sequence[NodeApi]:
        """
        The APIs of the nodes.

        @raise UsageProblem: if none is known.
        """
        if not self.apis:
            raise UsageProblem(
                "this needs the HTTP API of the nodes: --api http(s)://HOST:PORT, or 'apis' in the profile"
            )
        return [self.api(address) for address in dict.fromkeys(self.apis)]

    def needed_reports(self) -> Sequence[Address]:
        """
        Where events come from.

        @raise UsageProblem: if that is unknown.
        """
        if not self.reports and not self.via:
            raise UsageProblem("--via or --reports is missing, and there is no profile that has one of them")
        if not self.reports:
            raise UsageProblem("--reports is missing: where do the nodes publish their events?")
        return self.reports

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
            except ClientError:
                name = None
            self._names[address] = name if isinstance(name, str) else None
        return self._names[address]

    def api(self, node: str, url: str | None) -> NodeApi:
        """
        The API of a node.

        @param url: where it says that its API is.

        @raise ClientError: if it is unknown.
        """
        if url is not None:
            try:
                return self._connections.api(read_api(url))
            except UsageProblem:
                pass
        for address in self._connections.apis:
            if self.name(address) == node:
                return self._connections.api(address)
        raise ClientError(f"the API of {node} is unknown: neither its events nor --api say where it is")


def _secret(option: str | None, variable: str | None, key: str | None) -> str | None:
    if option is not None:
        return read_secret(option)
    return variable or (None if key is None else read_secret(key))
