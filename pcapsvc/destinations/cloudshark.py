"""Captures to CloudShark, by its upload API."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import quote

from OpenSSL import SSL, crypto
from service_identity import VerificationError
from treq.multipart import MultiPartProducer
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import (
    IConsumer,
    IOpenSSLClientConnectionCreator,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    optionsForClientTLS,
    trustRootFromCertificates,
)
from twisted.internet.task import Cooperator
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import Agent, FileBodyProducer, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from pcapsvc.core.artifact import Artifact
from pcapsvc.core.errors import DestinationError
from pcapsvc.core.result import Receipt
from pcapsvc.core.retry import asked_delay
from pcapsvc.core.text import one_line, without_secrets
from pcapsvc.interfaces import IDestination

_MOST_ANSWER_BYTES = 64 * 1024
# With its headers, of which the HTTP client takes any number.
_MOST_RECEIVED_BYTES = 256 * 1024
_LONGEST_ID = 256

_PEM_CERTIFICATE = re.compile(
    rb"-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----.*?-----END [A-Z0-9 ]+-----", re.DOTALL
)


@implementer(IDestination)
class CloudShark:
    """
    Uploads captures: POST of C{multipart/form-data} to
    C{SCHEME://HOST[:PORT]/api/v1/TOKEN/upload}, streamed. Each upload has a connection
    of its own, which never outlives it. No redirect is followed: it would take the
    token along.

    Its API knows no name by which a capture that has arrived could be found again: where
    the answer is lost, the next attempt makes a second one of the same file name.

    Retryable are what fails on the way, time-outs, and the answers 408, 429 and 5xx;
    not any other answer, nor a certificate that can't be verified.

    @param reactor: connects, and keeps the time.
    @param scheme: C{http} or C{https}.
    @param host: a name or an address.
    @param token: the API token. It is in no error, log or location.
    @param timeout_seconds: how long an upload may take, from its first byte to the
        last of its answer; L{None} for no limit.
    @param verify: whether the server's certificate is verified, or the path of the
        certificates, in PEM, to verify it with. The file is read for each upload.
    """

    name = "cloudshark"

    def __init__(
        self,
        reactor: Any,
        *,
        scheme: str,
        host: str,
        port: int,
        token: str,
        timeout_seconds: float | None = None,
        verify: bool | str = True,
    ) -> None:
        self._reactor = reactor
        self._scheme = scheme
        self._host = _ascii(host.strip("[]"))
        self._port = port
        self._timeout_seconds = timeout_seconds
        self._verify = verify
        shown_host = f"[{self._host}]" if ":" in self._host else self._host
        usual = port == {"http": 80, "https": 443}[scheme]
        self._authority = shown_host if usual else f"{shown_host}:{port}"
        self._base = f"{scheme}://{self._authority}"
        self._token = token
        self._secrets = ((token, "[token]"),)
        self._cooperator = Cooperator(scheduler=lambda work: reactor.callLater(0, work))

    def store(self, artifact: Artifact) -> Deferred[Receipt]:
        """See L{IDestination.store}. The receipt's location is the link of the capture."""
        stored = Deferred.fromCoroutine(self._store(artifact))
        if self._timeout_seconds is not None:
            stored.addTimeout(self._timeout_seconds, self._reactor, self._timed_out)
        return stored

    def _timed_out(self, result: Any, seconds: float) -> Any:
        if isinstance(result, Failure) and isinstance(result.value, CancelledError):
            raise DestinationError(f"{self._base}: no answer within {seconds:g} s", retryable=True)
        return result

    async def _store(self, artifact: Artifact) -> Receipt:
        try:
            answer = await self._upload(artifact)
        except Exception as error:  # noqa: BLE001 - what an HTTP client raises may show the URL, and the token in it
            cause = _innermost(error)
            if isinstance(cause, CancelledError):
                raise CancelledError() from None
            words, retryable = self._told(cause)
            raise DestinationError(f"{self._base}: {words}", retryable=retryable) from None
        return Receipt(destination=self.name, location=self._judged(answer))

    async def _upload(self, artifact: Artifact) -> _Answer:
        """One request."""
        connection = _Connection(
            server_endpoint(self._reactor, self._scheme, self._host, self._port, self._verify)
        )
        agent = Agent.usingEndpointFactory(self._reactor, connection)  # type: ignore[no-untyped-call]
        with artifact.content.open() as file:
            form = _Form(artifact, file, self._cooperator)
            try:
                request = agent.request(
                    b"POST",
                    f"{self._base}/api/v1/{quote(self._token, safe='')}/upload".encode("ascii"),
                    Headers(
                        {
                            # The agent's own is wrong for an IPv6 address.
                            b"Host": [self._authority.encode("ascii")],
                            b"Content-Type": [form.content_type],
                            b"Accept": [b"application/json"],
                        }
                    ),
                    form,
                )
                response = await connection.answer(request)
                return _Answer(
                    code=response.code,
                    asked_seconds=asked_delay(_header(response, "retry-after"), _header(response, "date")),
                    body=await _read(response),
                )
            finally:
                form.stopProducing()
                connection.abort()

    def _judged(self, answered: _Answer) -> str:
        """
        What the answer says: the link of the capture.

        @raise DestinationError: where it is not that it was taken.
        """
        code = answered.code
        try:
            answer = json.loads(answered.body)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            answer = {}
        id = answer.get("id")
        if code == 200 and type(id) in (str, int) and 0 < len(str(id)) <= _LONGEST_ID:
            link = f"{self._base}/captures/{quote(str(id), safe='', errors='replace')}"
            return without_secrets(link, self._secrets)
        exceptions = answer.get("exceptions")
        if isinstance(exceptions, list) and exceptions:
            words = "; ".join(str(exception) for exception in exceptions)
        elif isinstance(exceptions, str) and exceptions:
            words = exceptions
        elif code == 200:
            words = "with no id of a capture"
        elif 300 <= code < 400:
            words = "a redirect, which is not followed"
        else:
            words = "with no reason"
        raise DestinationError(
            f"{self._base}: answered {code}: {self._one_line(words)}",
            retryable=code in (408, 429) or code >= 500,
            retry_after_seconds=answered.asked_seconds,
        )

    def _told(self, error: BaseException) -> tuple[str, bool]:
        """What went wrong on the way, in words, and whether it may go right later."""
        if isinstance(error, VerificationError):
            return f"the certificate is not for {self._host}", False
        if isinstance(error, SSL.Error):
            reasons = error.args[0] if error.args and isinstance(error.args[0], list) else []
            words = self._one_line("; ".join(str(reason[-1]) for reason in reasons if reason) or "TLS failed")
            return f"TLS: {words}", "certificate verify failed" not in words
        if isinstance(error, _Unusable):
            return self._one_line(str(error)), False
        return self._one_line(str(error) or type(error).__name__), True

    def _one_line(self, text: str) -> str:
        return one_line(text, secrets=self._secrets)


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """
    An answer.

    @ivar asked_seconds: how long the server asks to be left alone, where it does.
    """

    code: int
    asked_seconds: float | None
    body: bytes


class _Unusable(Exception):
    """A file of certificates that can't be used."""


def server_endpoint(
    reactor: Any, scheme: str, host: str, port: int, verify: bool | str
) -> IStreamClientEndpoint:
    """
    How to connect to a server.

    @param verify: as in L{CloudShark}.

    @raise Exception: where the file of certificates can't be used.
    """
    plain = HostnameEndpoint(reactor, host, port)
    if scheme == "http":
        return plain
    creator: IOpenSSLClientConnectionCreator
    if verify is False:
        creator = _Unverified(host)
    elif verify is True:
        creator = optionsForClientTLS(host)
    else:
        trusted = trustRootFromCertificates(_certificates(verify))  # type: ignore[no-untyped-call]
        creator = optionsForClientTLS(host, trustRoot=trusted)
    endpoint: IStreamClientEndpoint = wrapClientTLS(creator, plain)
    return endpoint


def _certificates(path: str) -> list[Certificate]:
    try:
        with open(path, "rb") as file:
            found = [Certificate.loadPEM(pem) for pem in _PEM_CERTIFICATE.findall(file.read())]
    except OSError as error:
        raise _Unusable(f"{path}: {error.strerror}") from error
    except (ValueError, crypto.Error) as error:
        raise _Unusable(f"{path}: is not made of certificates in PEM") from error
    if not found:
        raise _Unusable(f"{path}: holds no certificate in PEM")
    return found


@implementer(IOpenSSLClientConnectionCreator)
class _Unverified:
    """TLS with whoever answers."""

    def __init__(self, host: str) -> None:
        self._host = host

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        connection = SSL.Connection(CertificateOptions(verify=False).getContext(), None)
        if not (isIPAddress(self._host) or isIPv6Address(self._host)):
            # RFC 6066, section 3: no addresses.
            connection.set_tlsext_host_name(self._host.encode("idna"))
        return connection


@implementer(IAgentEndpointFactory, IStreamClientEndpoint)
class _Connection:
    """
    The connection of one upload, so that it can be ended whatever state the HTTP
    client is in: one that was answered early goes on to send what nobody reads.
    """

    def __init__(self, endpoint: IStreamClientEndpoint) -> None:
        self._endpoint = endpoint
        self._open: _Watched | None = None
        self._answered: Deferred[IResponse] | None = None

    def endpointForURI(self, uri: object) -> IStreamClientEndpoint:
        return self

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        def connected(protocol: Any) -> Any:
            self._open = protocol
            # A peer that went away without a word is noticed, even where no time-out is set.
            protocol.setTcpKeepAlive(True)
            return protocol.wrappedProtocol

        watching = _Watching(protocolFactory, self._lost, self._too_much)
        return self._endpoint.connect(watching).addCallback(connected)

    def answer(self, request: Deferred[IResponse]) -> Deferred[IResponse]:
        """
        What a request on this connection fires with. Where an answer can't be parsed
        before the request was sent in full, the agent's own Deferred never fires: this
        one does, when the connection is lost.
        """
        cancelled = False

        def cancel(_: object) -> None:
            # What the agent says to this depends on how far it was.
            nonlocal cancelled
            cancelled = True
            request.cancel()

        answered: Deferred[IResponse] = Deferred(cancel)
        self._answered = answered

        def fired(result: Any) -> None:
            if answered.called or cancelled:
                return
            if isinstance(result, Failure):
                answered.errback(result)
            else:
                answered.callback(result)

        request.addBoth(fired)
        return answered

    def abort(self) -> None:
        """End it, now. Nothing happens where it has ended, or never begun."""
        if self._open is not None:
            self._open.abortConnection()

    def _too_much(self) -> None:
        if self._answered is not None and not self._answered.called:
            self._answered.errback(ConnectionError(f"an answer of more than {_MOST_RECEIVED_BYTES} bytes"))
        self.abort()

    def _lost(self, reason: Failure) -> None:
        self._open = None
        if self._answered is not None and not self._answered.called:
            self._answered.errback(ConnectionLost("the connection was lost within an answer that is no HTTP"))


class _Watched(ProtocolWrapper):
    """
    A connection whose loss is told, after whoever uses it has heard of it; and that
    something arrives that is too long, of which no more is passed on.
    """

    factory: _Watching
    _received_bytes = 0

    def dataReceived(self, data: bytes) -> None:
        self._received_bytes += len(data)
        if self._received_bytes <= _MOST_RECEIVED_BYTES:
            super().dataReceived(data)  # type: ignore[no-untyped-call]
        else:
            self.factory.too_much()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        try:
            super().connectionLost(reason)  # type: ignore[no-untyped-call]
        finally:
            self.factory.lost(reason)


class _Watching(WrappingFactory[_Watched]):
    protocol = _Watched
    noisy = False

    def __init__(self, wrapped: Any, lost: Callable[[Failure], None], too_much: Callable[[], None]) -> None:
        wrapped.noisy = False
        super().__init__(wrapped)  # type: ignore[no-untyped-call]
        self.lost = lost
        self.too_much = too_much


@implementer(IBodyProducer)
class _Form:
    """
    The form that is uploaded, which can be stopped at any time.

    @ivar content_type: its media type.
    """

    def __init__(self, artifact: Artifact, file: BinaryIO, cooperator: Cooperator) -> None:
        content = FileBodyProducer(file, cooperator=cooperator)  # type: ignore[no-untyped-call]
        self._producer = MultiPartProducer(
            [
                ("additional_tags", artifact.tags.encode("utf-8", "replace")),
                ("file", (artifact.name, "application/octet-stream", content)),
            ],
            cooperator=cooperator,
        )
        self._producing = False
        self.length = self._producer.length
        self.content_type = b"multipart/form-data; boundary=" + self._producer.boundary

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        self._producing = True
        produced: Deferred[None] = Deferred(lambda _: self.stopProducing())

        def done(result: Any) -> None:
            if self._producing:
                self._producing = False
                if isinstance(result, Failure):
                    produced.errback(result)
                else:
                    produced.callback(None)

        self._producer.startProducing(consumer).addBoth(done)
        return produced

    def stopProducing(self) -> None:
        if self._producing:
            self._producing = False
            self._producer.stopProducing()

    def pauseProducing(self) -> None:
        if self._producing:
            self._producer.pauseProducing()

    def resumeProducing(self) -> None:
        if self._producing:
            self._producer.resumeProducing()


class _Body(Protocol):
    """Reads a body, or the beginning of one that is too long."""

    def __init__(self) -> None:
        self._data = b""
        self.done: Deferred[bytes] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self._data = (self._data + data)[:_MOST_ANSWER_BYTES]
        if len(self._data) == _MOST_ANSWER_BYTES and not self.done.called:
            self.done.callback(self._data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.done.called:
            return
        if isinstance(reason.value, ResponseDone | PotentialDataLoss):
            self.done.callback(self._data)
        else:
            self.done.errback(reason)


def _header(response: IResponse, name: str) -> str | None:
    values: list[str] = response.headers.getRawHeaders(name) or []
    return values[0] if values else None


def _read(response: IResponse) -> Deferred[bytes]:
    body = _Body()
    response.deliverBody(body)  # type: ignore[no-untyped-call]
    return body.done


def _ascii(host: str) -> str:
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError:
        # An IPv6 address may be longer than what is between two dots of a name.
        return host


def _innermost(error: BaseException) -> BaseException:
    """What is within the wrappings of the HTTP client."""
    while reasons := getattr(error, "reasons", None):
        error = reasons[0].value
    return error
