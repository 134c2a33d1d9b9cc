"""C{pcapctl capture}: sends a request, and waits for what becomes of it."""

from __future__ import annotations

import os
import signal
import sys
import time
import uuid
from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pcapsvc.client.address import Address, HttpAddress, SqsAddress
from pcapsvc.client.at_once import at_once
from pcapsvc.client.complaint import complain, show
from pcapsvc.client.connections import Connections, NodeNames
from pcapsvc.client.interruption import on_signal
from pcapsvc.client.message import encode, stop_message
from pcapsvc.client.profile import read_secret
from pcapsvc.client.reader import EventReader
from pcapsvc.client.status import ClientError, ExitStatus, NoAnswer, NotMeant, Refused, UsageProblem
from pcapsvc.client.tally import Tally
from pcapsvc.client.views import IView, JsonView, LineView
from pcapsvc.client.waiting import IFiles, NoFiles, Patience, Waiting
from pcapsvc.client.words import clean
from pcapsvc.core.text import counted

#: How long answers may take, if the number of nodes is unknown: to compile a filter takes up to five seconds.
ANSWER_SECONDS = 7.0
#: On a queue that nodes share, a message reaches its node by chance.
QUEUE_ANSWER_SECONDS = 30.0
#: How long the nodes that are expected have, without a deadline.
EXPECTED_SECONDS = 60.0
#: Whose value is the URL that captures are put to, as options can be seen by every user of a host.
PUT_URL_VARIABLE = "PCAPCTL_PUTURL"

# What TERM is if the cursor can't be moved.
_NO_CURSOR = ("", "dumb", "unknown")
_FIELDS = (
    *("node", "nodere", "interface", "alias", "packets", "bytes", "timeout", "duration", "snap"),
    *("before", "pastonly", "beforeoptional", "rolling", "format", "compress"),
    *("customer", "alertid"),
    *("host", "net", "port", "portrange", "protocol", "src", "dst", "flags", "vlan", "direction"),
)


def request_fields(
    options: Namespace, defaults: Mapping[str, Any], environment: Mapping[str, str]
) -> dict[str, Any]:
    """
    The fields of a request: those of the options, and for the others the defaults of the profile.

    @param environment: it may have L{PUT_URL_VARIABLE}.

    @raise UsageProblem: if options contradict each other.
    """
    found = {name: getattr(options, name) for name in _FIELDS}
    # Not those that equal False: 0 is for the rules to reject.
    given = {name: value for name, value in found.items() if value is not None and value is not False}
    address = node_address(options)
    fields = dict(defaults)
    for group, own in (
        (("node", "nodere"), address),
        (("interface", "alias"), {name: given[name] for name in ("interface", "alias") if name in given}),
    ):
        if own:
            # One that is given replaces the other as well.
            fields = {name: value for name, value in fields.items() if name not in group}
    if "rolling" in given:
        # What ends other captures, unless it is given with it.
        fields = {name: value for name, value in fields.items() if name not in ("packets", "timeout")}
    fields |= given | address
    if options.tag:
        fields["tags"] = ",".join(options.tag)
    if options.filter:
        fields["bpf"] = " ".join(options.filter)
    if options.put_url and options.put_url_file:
        raise UsageProblem("give one of --puturl and --puturl-file")
    if options.put_url:
        fields["puturl"] = options.put_url
    elif options.put_url_file:
        fields["puturl"] = read_secret(options.put_url_file)
    elif environment.get(PUT_URL_VARIABLE):
        fields["puturl"] = environment[PUT_URL_VARIABLE]
    return fields


def node_address(options: Namespace) -> dict[str, str]:
    """
    Which nodes are meant, as the fields of a message; none if the options don't say.

    @raise UsageProblem: if they say it twice.
    """
    given = {name: getattr(options, name) for name in ("node", "nodere") if getattr(options, name)}
    if options.all:
        given["all"] = "any"
    if len(given) > 1:
        raise UsageProblem("give one of --node, --nodere and --all")
    return {"node" if name == "all" else name: value for name, value in given.items()}


def capture(options: Namespace) -> ExitStatus:
    """Run the command."""
    connections = Connections(options, os.environ)
    via = connections.needed_via()
    fields = {"node": "any"} if all(isinstance(each, HttpAddress) for each in via) else {}
    defaults = connections.profile.defaults
    if {"node", "nodere"} & {*defaults, *node_address(options)}:
        fields = {}
    fields |= request_fields(options, defaults, os.environ)
    requestid = uuid.uuid4().hex
    _check_complete(fields)
    name = f"the request{', with the defaults of the profile,' if defaults else ''}"
    body = encode({**fields, "requestid": requestid}, name)
    if options.merge and options.write is None:
        raise UsageProblem("--merge has no effect without -w")
    if options.write == "-" and options.json:
        raise UsageProblem("--json and -w - would both write to standard output")
    if options.write == "-" and not options.merge and fields.get("rolling"):
        raise UsageProblem("a rolling capture can't be shown live: it keeps its newest packets only")
    if options.write == "-" and not options.merge and not _is_one(fields, via):
        raise UsageProblem("-w - shows one capture: name one node and one interface, or use --merge")
    waits = (options.wait, options.json, options.write, options.expect, options.deadline)
    is_waiting = any(each not in (None, False) for each in waits)
    request = Request(connections, via, fields, requestid, body)
    for number in (signal.SIGTERM, signal.SIGHUP):
        # nohup has it ignored.
        if signal.getsignal(number) is signal.SIG_DFL:
            # Unfinished files are not left behind.
            on_signal(number, partial(SystemExit, 128 + number))
    return request.wait(options) if is_waiting else request.send_only()


class Request:
    """One request, and the ways that it takes."""

    def __init__(
        self,
        connections: Connections,
        via: Sequence[Address],
        fields: Mapping[str, Any],
        requestid: str,
        body: bytes,
    ) -> None:
        self._connections = connections
        self._via = via
        self._fields = fields
        self._requestid = requestid
        self._body = body
        self._names = NodeNames(connections)
        self._tally = Tally(requestid)
        self._others = 0

    def send_only(self) -> ExitStatus:
        """Send it, and print its name, by which its events and captures are found."""
        receivers = self._send()
        for row in self._tally.rows:
            complain(f"{clean(row.node)}: {clean(row.words)}")
        if self._tally.rows and len(self._tally.rows) == len(self._via):
            return self._tally.status(missing=self._tally.unreached)
        print(self._requestid)
        if receivers == 0:
            raise NoAnswer("nobody has received the request: no node is subscribed to the channel")
        return ExitStatus.PARTLY if self._tally.rows else ExitStatus.DELIVERED

    def wait(self, options: Namespace) -> ExitStatus:
        """Send it, and show what happens until it is done."""
        view = _view(options)
        files = self._files(options, view)
        reader = None
        try:
            # Before it is sent: nothing may be missed.
            reader = self._reader()
            receivers = self._send()
            if receivers == 0 and options.expect is None and options.deadline is None:
                raise NoAnswer("nobody has received the request: no node is subscribed to the channel")
            patience = patience_of(options, self._fields, self._via, receivers, others=self._others)
            waiting = Waiting(self._tally, reader, view, files, patience, time.monotonic)
            return self._until_done(waiting, view)
        finally:
            files.close()
            if reader is not None:
                reader.close()

    def _reader(self) -> EventReader:
        places = self._connections.needed_reports()
        try:
            return EventReader(self._connections, places, self._requestid)
        except ClientError as problem:
            words = f"nothing was requested, as the events can't be read: {problem}"
            raise type(problem)(words) from None

    def _until_done(self, waiting: Waiting, view: IView) -> ExitStatus:
        try:
            status = waiting.run()
            if not self._tally.rows:
                raise NoAnswer("no node has answered: none is meant, or none publishes its events")
            return status
        except KeyboardInterrupt:
            pass
        except BrokenPipeError:
            self._say_what_runs()
            raise
        try:
            view.close(self._tally, time.monotonic())
            if self._is_to_be_stopped():
                self._stop(view)
                waiting.run()
        except KeyboardInterrupt:
            show("\n")
        self._say_what_runs()
        return ExitStatus.INTERRUPTED

    def _say_what_runs(self) -> None:
        running = len({row.node for row in self._tally.running()})
        if running:
            complain(f"captures on {counted(running, 'node')} go on; to stop them: {self._how_to_stop()}")

    def _how_to_stop(self) -> str:
        return f"pcapctl stop {self._connections.options}--request {self._requestid}"

    def _is_to_be_stopped(self) -> bool:
        running = len({row.node for row in self._tally.running()})
        # It may be closed.
        if not running or not os.isatty(0):
            return False
        show(f"Stop the captures on {counted(running, 'node')}? [y/N] ")
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def _stop(self, view: IView) -> None:
        address = {name: self._fields[name] for name in ("node", "nodere") if name in self._fields}
        body = stop_message(self._requestid, address)
        for answer in at_once(lambda place: self._send_to(place, body), self._via):
            if isinstance(answer, ClientError):
                view.note(str(answer))

    def _send(self) -> int | None:
        """
        Send it everywhere. A node that refuses in its answer is counted; one that isn't meant is left out.

        @raise NoAnswer: if it can't be sent anywhere.
        """
        receivers: int | None = 0
        problems: list[NoAnswer] = []
        try:
            answers = at_once(lambda place: self._send_to(place, self._body), self._via)
        except KeyboardInterrupt:
            complain(f"nodes may have the request; to stop its captures: {self._how_to_stop()}")
            raise
        for address, answer in zip(self._via, answers, strict=True):
            if isinstance(answer, NoAnswer):
                problems.append(answer)
                if isinstance(answer, NotMeant):
                    self._others += 1
                    continue
                self._tally.miss(str(address), str(answer).removeprefix(f"{address}: "))
            elif isinstance(answer, ClientError):
                self._tally.refuse(self._name(address), str(answer))
                receivers = None
            else:
                receivers = None if answer is None or receivers is None else receivers + answer
        if len(problems) == len(self._via):
            raise problems[0]
        return receivers

    def _send_to(self, address: Address, body: bytes) -> int | ClientError | None:
        """
        In any thread: send a message to one address.

        @return: how many have received it, or L{None} if that isn't known; or why it is not sent.
        """
        try:
            return self._connections.transport(address).send(body)
        except Refused as refused:
            # Asked here, at once for all of them.
            self._name(address)
            return refused
        except NoAnswer as problem:
            return problem

    def _name(self, address: Address) -> str:
        name = self._names.name(address) if isinstance(address, HttpAddress) else None
        return name or str(address)

    def _files(self, options: Namespace, view: IView) -> IFiles:
        """What saves the files."""
        if options.write is None:
            return NoFiles()
        if options.write == "-" and not options.merge:
            from pcapsvc.client.streaming import Streamer

            return Streamer(self._names, sys.stdout.fileno(), view.note)
        from pcapsvc.client.fetching import Fetcher

        return Fetcher(self._names, options.write, merged=options.merge)


def patience_of(
    options: Namespace,
    fields: Mapping[str, Any],
    via: Sequence[Address],
    receivers: int | None,
    *,
    others: int = 0,
) -> Patience:
    """
    How long to wait for a request.

    @param receivers: how many have received it; L{None} if that isn't known.
    @param others: how many addresses of C{via} it does not mean.
    """
    expect, seconds = options.expect, ANSWER_SECONDS
    if expect is not None:
        seconds = EXPECTED_SECONDS
    elif all(isinstance(each, HttpAddress) for each in via):
        expect = len(via) - others
    elif "node" in fields:
        # Each subscriber is a node, unless somebody else listens.
        expect = receivers if fields["node"] == "any" else 1
    if any(isinstance(each, SqsAddress) for each in via):
        seconds = max(seconds, QUEUE_ANSWER_SECONDS)
    if options.deadline is not None and expect is not None:
        # Not if nobody knows who is missing: all that have answered may be done long before.
        seconds = options.deadline
    return Patience(expect=expect, answer_seconds=seconds, deadline_seconds=options.deadline)


def _check_complete(fields: Mapping[str, Any]) -> None:
    """
    Check that a request says for whom it is, and where to capture.

    @raise UsageProblem: if it does not, with the options that do.
    """
    missing, given = [], {name.lower() for name in fields}
    if not {"node", "nodere"} & given:
        missing.append("--node, --nodere or --all")
    if not {"interface", "alias"} & given:
        missing.append("-i or --alias")
    if missing:
        raise UsageProblem(f"{', and '.join(missing)} must be given")


def _is_one(fields: Mapping[str, Any], via: Sequence[Address]) -> bool:
    """Whether a request means one capture, as far as it says."""
    is_one_node = fields.get("node", "any") != "any" or (len(via) == 1 and isinstance(via[0], HttpAddress))
    return is_one_node and len(fields.get("interface") or fields.get("alias") or ()) == 1


def _view(options: Namespace) -> IView:
    if options.json:
        return JsonView(sys.stdout)
    stream = sys.stderr if options.write == "-" else sys.stdout
    if options.no_progress or not stream.isatty() or os.environ.get("TERM", "dumb") in _NO_CURSOR:
        return LineView(stream)
    # Imported for a terminal only: it takes longer than all of the rest.
    from pcapsvc.client.table import TableView

    return TableView(stream)
