"""Captures to CloudShark, through its API."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import quote, urlencode

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.task import Cooperator
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pcapsvc.core.artifact import Artifact
from pcapsvc.core.errors import DestinationError
from pcapsvc.core.mask import without_secrets
from pcapsvc.core.no_options import WithoutOptions
from pcapsvc.core.result import Receipt
from pcapsvc.core.text import one_line
from pcapsvc.destinations.cloudshark.form import Form
from pcapsvc.interfaces.delivery import IDestination
from pcapsvc.interfaces.threads import RunInThread
from pcapsvc.net.http_client import Response, exchange, failure_words, server_endpoint

# The id of a capture: CloudShark's are hexadecimal words or numbers.
_ID = re.compile(r"[A-Za-z0-9_-]{1,256}")
_LARGEST_NUMBER = 10**20


@implementer(IDestination)
class CloudShark(WithoutOptions):
    """
    Uploads captures, streamed: POST of C{multipart/form-data} to
    C{SCHEME://HOST[:PORT]/api/v1/TOKEN/upload}. Each upload has its own connection, which is closed with
    it. Redirects are not followed, as they would leak the token.

    Each upload makes a new capture there, even if there is one of the same name. So if an earlier upload may
    have arrived, the capture is searched for first, by its file name, which contains its id: GET of
    C{…/search?search[filename]=NAME} (CloudShark's API, "Search"). If the token may not search, or the
    search takes too long, the capture is uploaded. If the search fails with an error that may pass, the
    attempt has failed.

    A capture is delivered if the answer to its whole upload has the id of a capture, and no error; or if the
    search finds one of its name, and of its size if the answer has sizes.

    Retryable: connection errors, time-outs, answers that may pass (L{pcapsvc.core.http_status}), and
    redirects and successes that are not CloudShark's, but for example a captive portal's. Not retryable: any
    other answer, and a certificate that can't be verified.

    @param run_in_thread: for captures and certificates, whose disk may hang.
    @param scheme: C{http} or C{https}.
    @param host: a name or an address.
    @param token: the API token. It is in no error, log or location.
    @param timeout_seconds: how long an upload may take, from its first byte to the last one of the answer;
        L{None} is no limit.
    @param verify: whether the server's certificate is verified; or the path of the PEM file with the
        certificates to verify it with, which is read for each upload.
    @param search_seconds: how long the search may take. After that, two copies there are better than none.
    """

    name = "cloudshark"
    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        *,
        run_in_thread: RunInThread,
        scheme: str,
        host: str,
        port: int,
        token: str,
        timeout_seconds: float | None = None,
        verify: bool | str = True,
        search_seconds: float = 10.0,
    ) -> None:
        self._reactor = reactor
        self._run_in_thread = run_in_thread
        self._scheme = scheme
        self._host = _ascii(host.strip("[]"))
        self._port = port
        self._timeout_seconds = timeout_seconds
        self._verify = verify
        self._search_seconds = search_seconds
        # The zone of an address means something to this host only (RFC 6874, section 3).
        shown_host = self._host.partition("%")[0]
        if ":" in shown_host:
            shown_host = f"[{shown_host}]"
        usual = port == {"http": 80, "https": 443}[scheme]
        self._authority = shown_host if usual else f"{shown_host}:{port}"
        self._base = f"{scheme}://{self._authority}"
        self._token = token
        self._secrets = ((token, "[token]"),)
        self._cooperator = Cooperator(scheduler=lambda work: reactor.callLater(0, work))

    def store(self, artifact: Artifact) -> Deferred[Receipt]:
        """See L{IDestination.store}. The receipt's location is the capture's page."""
        stored = Deferred.fromCoroutine(self._store(artifact))
        if self._timeout_seconds is not None:
            stored.addTimeout(self._timeout_seconds, self._reactor, self._timed_out)
        return stored

    def _timed_out(self, result: Any, seconds: float) -> Any:
        if isinstance(result, Failure) and isinstance(result.value, CancelledError):
            raise DestinationError(f"{self._base}: timed out after {seconds:g} s", retryable=True)
        return result

    async def _store(self, artifact: Artifact) -> Receipt:
        try:
            link = await self._found(artifact) if artifact.may_be_there else None
            if link is None:
                link = await self._upload(artifact)
        except DestinationError:
            raise
        except Exception as error:  # noqa: BLE001 - what an HTTP client raises may show the URL, and the token in it
            if isinstance(error, CancelledError):
                raise CancelledError() from None
            words, retryable = failure_words(error, self._host)
            raise DestinationError(f"{self._base}: {self._one_line(words)}", retryable=retryable) from None
        return Receipt(destination=self.name, location=link)

    async def _found(self, artifact: Artifact) -> str | None:
        """
        The page of a capture that is there already; L{None} if it is not found.

        @raise DestinationError: if the server can't tell for now.
        """
        what = f"search?{urlencode({'search[filename]': artifact.name})}"
        asked = Deferred.fromCoroutine(self._exchange("GET", what))
        try:
            answer = await asked.addTimeout(self._search_seconds, self._reactor)
        except TimeoutError:
            self._log_not_found(artifact, "timed out")
            return None
        captures = _object(answer.body).get("captures")
        if answer.is_passing_error:
            self._judge(answer)
        if answer.code != 200 or not isinstance(captures, list):
            self._log_not_found(artifact, f"answered {answer.code}")
            return None
        # The server finds parts of names as well.
        links = (self._link(each.get("id")) for each in captures if _is(each, artifact))
        return next((link for link in links if link is not None), None)

    def _log_not_found(self, artifact: Artifact, problem: str) -> None:
        self._log.info(
            "{capture_id}: the search for {name} on {base} {problem}; it is uploaded again",
            capture_id=artifact.capture_id,
            base=self._base,
            problem=problem,
            name=artifact.name,
        )

    async def _upload(self, artifact: Artifact) -> str:
        """
        The page of the capture, uploaded.

        @raise DestinationError: if it was not accepted.
        """
        form = Form(artifact, run_in_thread=self._run_in_thread, cooperator=self._cooperator)
        try:
            response = await self._exchange("POST", "upload", form)
        finally:
            form.close()
        link = self._judge(response)
        if not form.has_sent_file:
            raise DestinationError(
                f"{self._base}: answered {response.code} before it had the whole capture", retryable=True
            )
        return link

    async def _exchange(self, method: str, what: str, form: Form | None = None) -> Response:
        """One request to the API."""
        headers = {
            # Twisted's agent gets IPv6 addresses wrong.
            "Host": self._authority,
            "Accept": "application/json",
        }
        if form is not None:
            headers["Content-Type"] = form.content_type
        return await exchange(
            self._reactor,
            await server_endpoint(
                self._reactor, self._scheme, self._host, self._port, self._verify, self._run_in_thread
            ),
            method,
            f"{self._base}/api/v1/{quote(self._token, safe='')}/{what}",
            headers,
            form,
        )

    def _judge(self, response: Response) -> str:
        """
        The page of the uploaded capture, by the answer.

        @raise DestinationError: if it was not accepted.
        """
        code, answer = response.code, _object(response.body)
        exceptions, status = answer.get("exceptions"), str(answer.get("status"))
        # A proxy may answer 200 for a server that doesn't.
        failed = re.fullmatch("[45][0-9]{2}", status) is not None
        link = self._link(answer.get("id")) if code == 200 and not (exceptions or failed) else None
        if link is not None:
            return link
        if isinstance(exceptions, list) and exceptions:
            words = "; ".join(str(exception) for exception in exceptions)
        elif isinstance(exceptions, str) and exceptions:
            words = exceptions
        elif code == 200 and failed:
            words = f"with the status {status}"
        elif code == 200:
            words = "without the id of a capture"
        elif 300 <= code < 400:
            words = "a redirect, which is not followed"
        else:
            words = "without a reason"
        raise DestinationError(
            f"{self._base}: answered {code}: {self._one_line(words)}",
            # CloudShark gives reasons for what it refuses. The login page of a captive portal, or a proxy's
            # redirect, goes away.
            retryable=response.is_passing_error or (code < 400 and not exceptions),
            retry_after_seconds=response.asked_seconds,
        )

    def _link(self, id: object) -> str | None:
        """The page of a capture; L{None} if this is not an id."""
        is_word = isinstance(id, str) and _ID.fullmatch(id)
        is_number = type(id) is int and 0 < id < _LARGEST_NUMBER
        if not (is_word or is_number):
            return None
        link = f"{self._base}/captures/{id}"
        return without_secrets(link, self._secrets)

    def _one_line(self, text: str) -> str:
        return one_line(text, secrets=self._secrets)


def _object(body: bytes) -> dict[str, Any]:
    """The JSON object in an answer; an empty one if there is none."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    return answer if isinstance(answer, dict) else {}


def _is(capture: object, artifact: Artifact) -> bool:
    """Whether something that was found is a capture, whole."""
    return (
        isinstance(capture, dict)
        and capture.get("filename") == artifact.name
        and capture.get("size") in (None, artifact.content.size)
    )


def _ascii(host: str) -> str:
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError:
        # An IPv6 address may be longer than a label of a name.
        return host
