"""The operating system's packets, by libpcap."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Callable, Sequence
from mmap import mmap
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, FirstError, gatherResults, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pcapsvc.core.errors import NO_SUCH_INTERFACE, CaptureUnavailable, PcapsvcError
from pcapsvc.core.filter import FilterRejected, Program
from pcapsvc.core.link_type import ETHERNET, LINUX_SLL, is_cooked, kept_length
from pcapsvc.core.network_interface import NetworkInterface
from pcapsvc.core.pcap_file import MICROSECOND_TICKS
from pcapsvc.core.text import one_line
from pcapsvc.host.permission import open_packet_socket
from pcapsvc.interfaces.capture import (
    IPacketDumper,
    IPacketHandle,
    IRecordWriter,
    ISieve,
    IStandbyHandle,
    IStandbyPacketSystem,
)
from pcapsvc.interfaces.threads import RunInThread
from pcapsvc.kernel_file import read_kernel_file
from pcapsvc.packets.filter_compiler import FilterCompiler, uses_netmask
from pcapsvc.packets.handle import LIBPCAP, PcapyHandle, libpcap_path, open_dumper
from pcapsvc.packets.handle_filters import Kind, problem_as_text
from pcapsvc.packets.interface_list import list_interfaces
from pcapsvc.packets.kernel_filter import runs_on_cooked
from pcapsvc.packets.libpcap import LibpcapError
from pcapsvc.packets.network_interfaces import (
    ANY_INDEX,
    Interface,
    encoded,
    find_index,
    known_index,
    name_of,
    sysfs_path,
)
from pcapsvc.packets.opener import ANY_INTERFACE, Opener

if TYPE_CHECKING:
    from pcapsvc.packets.records import RecordFunctions

# What libpcap makes of types of hardware (linux/if_arp.h, map_arphrd_to_dlt() in pcap-linux.c), of those on
# which that depends on nothing else.
_LINK_TYPES = {b"1": ETHERNET, b"772": ETHERNET}

# netdevice(7): struct ifreq, and the request for a netmask.
_SIOCGIFNETMASK = 0x891B
_IFREQ = struct.Struct("=16sHH4s16x")
# For how many kinds of handles a program is kept: there are as many as snap lengths.
_MOST_COMPILED = 64


@implementer(IStandbyPacketSystem)
class PcapySystem(Service):
    """
    Captures as tcpdump does.

    To open a handle takes some 25 ms, in which the kernel waits for all processors to take note of the new
    socket: that is done in a thread.

    @param compiler: compiles the filters of requests.
    @param run_in_thread: for what takes long.
    @param buffer_size_bytes: of the kernel's ring, for each capture.
    @param read_timeout_ms: after how long the kernel hands over a block that isn't full.
    @param promiscuous: whether to capture what is addressed to others.
    @param close_descriptor: closes a descriptor. For that of a packet socket the kernel waits as it does when
        it is opened: better done in a thread.
    @param native: whether libpcap may be called directly; it is if the internals of the installed pcapy are
        known.
    @param nanoseconds: whether time stamps are to be in nanoseconds; they are if libpcap is called directly.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        compiler: FilterCompiler,
        run_in_thread: RunInThread,
        buffer_size_bytes: int,
        read_timeout_ms: int,
        promiscuous: bool,
        close_descriptor: Callable[[int], None] = os.close,
        native: bool = True,
        nanoseconds: bool = False,
    ) -> None:
        self._compiler = compiler
        self._run_in_thread = run_in_thread
        self._opener = Opener(
            buffer_size_bytes=buffer_size_bytes,
            read_timeout_ms=read_timeout_ms,
            close_descriptor=close_descriptor,
            libpcap=LIBPCAP if native else None,
            nanoseconds=nanoseconds,
        )
        self._promiscuous = promiscuous
        self._record_functions: RecordFunctions | None = None
        # What was compiled last, while everything waited: all captures want the same.
        self._compiled_bpf = ""
        self._compiled_now: dict[Kind, Program] = {}
        # What threads are busy with, and who waits for the end of all of it.
        self._busy: set[Deferred[Any]] = set()
        self._idle: list[Deferred[None]] = []

    @property
    def is_native(self) -> bool:
        """Whether packets are written without Python."""
        return self._opener.libpcap is not None

    def startService(self) -> None:
        """Say so if captures will be slow."""
        super().startService()  # type: ignore[no-untyped-call]
        if not self.is_native:
            self._log.warn(
                "the internals of the installed pcapy-ng are unknown: captures need several times the"
                " processor time, and hard filters delay them"
            )
            if self._opener.nanoseconds:
                self._log.warn("therefore, time stamps are in microseconds")

    def stopService(self) -> Deferred[None]:
        """
        Await what is being opened.

        @return: fires when no thread is opening anything; what was opened in vain is closed by then.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        if not self._busy:
            return succeed(None)
        self._idle.append(Deferred())
        return self._idle[-1]

    def open(self, interface: str, *, snap_length: int, bpf: str) -> Deferred[IPacketHandle]:
        """Start to capture: see L{IPacketSystem.open}."""
        return Deferred.fromCoroutine(self._open(interface, snap_length, bpf))

    def open_standby(self, interface: str, *, snap_length: int) -> Deferred[IStandbyHandle]:
        """Open a handle that lets no packet pass: see L{IStandbyPacketSystem.open_standby}."""

        async def open_it() -> IStandbyHandle:
            found = await self._find(interface)
            return _StandbyHandle(
                self, await self._in_thread(lambda: self._opener.open_idle(found, snap_length))
            )

        return Deferred.fromCoroutine(open_it())

    def check(self) -> Deferred[None]:
        """See whether this process may capture at all: see L{IHostInterfaces.check}."""
        # In a thread: for each packet socket that is closed, the kernel waits for all processors.
        return self._run_in_thread(open_packet_socket)

    def list_interfaces(self) -> Deferred[Sequence[NetworkInterface]]:
        """The network interfaces: see L{IHostInterfaces.list_interfaces}."""
        return self._run_in_thread(list_interfaces)

    def compile_filter(self, interface: str | None, *, snap_length: int, bpf: str) -> Deferred[Program]:
        """Compile a filter, and open nothing: see L{IHostInterfaces.compile_filter}."""

        async def compile_it() -> Program:
            kind = _kind(ETHERNET, snap_length, netmask=0)
            if interface is not None:
                kind = await self._kind_on(await self._find(interface), snap_length, bpf)
            program = await self._compile(bpf, kind)
            if is_cooked(kind.link_type) and not runs_on_cooked(program.instructions):
                raise FilterRejected(bpf, f"the kernel can't run it on {interface}")
            problem = None if self.is_native else problem_as_text(program, kind.link_type)
            if problem is not None:
                raise FilterRejected(bpf, f"libpcap says: {problem}")
            return program

        return Deferred.fromCoroutine(compile_it())

    async def _kind_on(self, interface: Interface, snap_length: int, bpf: str) -> Kind:
        """What a filter on an interface is compiled for."""
        expected = _expected_kind(interface.index, snap_length, bpf)
        if expected is not None:
            return expected
        handle = await self._in_thread(lambda: self._opener.open_idle(interface, snap_length))
        try:
            return handle.kind(bpf)
        finally:
            handle.close()

    def compile_now(self, handle: IPacketHandle, bpf: str) -> Program:
        """Compile a filter for a handle, while everything waits: see L{IPacketSystem.compile_now}."""
        assert isinstance(handle, PcapyHandle)
        if bpf != self._compiled_bpf or len(self._compiled_now) == _MOST_COMPILED:
            self._compiled_bpf = bpf
            self._compiled_now.clear()
        kind = handle.kind(bpf)
        if kind not in self._compiled_now:
            self._compiled_now[kind] = handle.compile(bpf)
        return self._compiled_now[kind]

    def open_dumper(
        self,
        file: str | int,
        *,
        link_type: int,
        snap_length: int,
        ticks_per_second: int = MICROSECOND_TICKS,
    ) -> IPacketDumper:
        """Create a pcap file: see L{IPacketSystem.open_dumper}."""
        return open_dumper(
            file,
            link_type=link_type,
            snap_length=snap_length,
            ticks_per_second=ticks_per_second,
            libpcap=self._opener.libpcap,
        )

    def open_records(self, memory: mmap, start: int, end: int, *, link_type: int) -> IRecordWriter:
        """Write packets into memory: see L{IPacketSystem.open_records}."""
        return self._records().open_writer(memory, start, end, link_type=link_type)

    def open_sieve(
        self, interface: str, *, link_type: int, kept: int, snap_length: int, bpf: str
    ) -> Deferred[ISieve]:
        """Filter packets that were recorded: see L{IPacketSystem.open_sieve}."""
        # There are such packets: so these are loaded.
        from pcapsvc.core.recorded_filter import for_recorded, looked_at_bytes
        from pcapsvc.packets.records import Sieve

        async def open_it() -> ISieve:
            program, looks_beyond = None, False
            if bpf.strip():
                netmask = _netmask_of(interface) if uses_netmask(bpf) else 0
                kind = _kind(link_type, kept, netmask=netmask)
                compiled = await self._compile(bpf, kind)
                program = for_recorded(compiled, link_type)
                looks_beyond = looked_at_bytes(compiled) > kept_length(link_type, kept)
            try:
                return Sieve(
                    self._records(),
                    link_type=link_type,
                    kept=kept_length(link_type, kept),
                    snap_length=kept_length(link_type, snap_length),
                    program=program,
                    looks_beyond=looks_beyond,
                )
            except LibpcapError as error:
                raise FilterRejected(bpf, f"libpcap says: {one_line(str(error))}") from None

        return Deferred.fromCoroutine(open_it())

    def _records(self) -> RecordFunctions:
        if not self.is_native:
            raise OSError("the internals of the installed pcapy-ng are unknown")
        if self._record_functions is None:
            # Imported here: nodes without a history do without.
            from pcapsvc.packets.records import RecordFunctions

            try:
                self._record_functions = RecordFunctions(libpcap_path())
            except AttributeError as error:
                raise OSError(str(error)) from None
        return self._record_functions

    async def arm(self, handle: PcapyHandle, bpf: str) -> IPacketHandle:
        """Have a handle that let no packet pass capture. It is used up, whatever comes of it."""
        try:
            program = await self._compile(bpf, handle.kind(bpf))
        except BaseException:
            handle.close()
            raise
        return await self._begin(handle, program)

    def find(self, interface: str) -> Deferred[int | None]:
        """Find an interface by its name: see L{IStandbyPacketSystem.find}."""
        if interface == ANY_INTERFACE:
            return succeed(ANY_INDEX)
        index = known_index(interface)
        if index is not None:
            return succeed(index)
        return self._run_in_thread(find_index, interface)

    async def _find(self, interface: str) -> Interface:
        index = await self.find(interface)
        if index is None:
            raise CaptureUnavailable(interface, NO_SUCH_INTERFACE)
        own = interface if index == ANY_INDEX else name_of(index)
        return Interface(name=interface, index=index, has_own_name=own == interface)

    async def _open(self, interface: str, snap_length: int, bpf: str) -> IPacketHandle:
        # libpcap opens more than network interfaces by name (USB, D-Bus, netfilter): those are not asked for.
        found = await self._find(interface)
        expected = _expected_kind(found.index, snap_length, bpf)
        compiling: Deferred[Any] = succeed(None)
        if expected is not None:
            compiling = self._compile(bpf, expected).addErrback(_as_rejection)
            if compiling.called:
                known = await compiling
                if isinstance(known, Program):
                    return await self._open_at_once(found, snap_length, bpf, known, expected)
                compiling = succeed(known)
        handle, compiled = await self._open_and_compile(found, snap_length, compiling)
        try:
            if compiled is None or handle.kind(bpf) != expected:
                compiled = await self._compile(bpf, handle.kind(bpf))
            elif isinstance(compiled, FilterRejected):
                raise compiled
        except BaseException:
            handle.close()
            raise
        return await self._begin(handle, compiled)

    async def _open_at_once(
        self, interface: Interface, snap_length: int, bpf: str, program: Program, expected: Kind
    ) -> IPacketHandle:
        """Open a handle whose program is known."""
        handle = await self._in_thread(
            lambda: self._opener.open(
                interface,
                snap_length,
                program,
                promiscuous=self._is_to_be_promiscuous(interface.index),
                kind=expected,
            )
        )
        if handle.kind(bpf) == expected:
            return handle
        return await self.arm(handle, bpf)

    async def _open_and_compile(
        self, interface: Interface, snap_length: int, compiling: Deferred[Any]
    ) -> tuple[PcapyHandle, Any]:
        """
        Open a handle that lets no packet pass, while its filter is compiled. Neither takes long as a rule:
        the kernel waits, and a process starts.
        """
        handles: list[PcapyHandle] = []
        opening = self._in_thread(lambda: self._opener.open_idle(interface, snap_length))
        opening.addCallback(handles.append)
        both: Deferred[list[Any]] = gatherResults([compiling, opening], consumeErrors=True)
        try:
            compiled, _ = await both
        except BaseException as error:
            for one in (compiling, opening):
                one.cancel()
            for handle in handles:
                handle.close()
            if isinstance(error, FirstError):
                error.subFailure.raiseException()
            raise
        return handles[0], compiled

    def _begin(self, handle: PcapyHandle, program: Program) -> Deferred[PcapyHandle]:
        promiscuous = self._is_to_be_promiscuous(handle.index)
        return self._in_thread(lambda: handle.begin(program, promiscuous=promiscuous))

    def _compile(self, bpf: str, kind: Kind) -> Deferred[Program]:
        return self._compiler.compile(
            bpf, link_type=kind.link_type, snap_length=kind.snap_length, netmask=kind.netmask
        )

    def _is_to_be_promiscuous(self, index: int) -> bool:
        # There is no promiscuous mode on all interfaces (packet(7)).
        return self._promiscuous and index != ANY_INDEX

    def _in_thread(self, work: Callable[[], PcapyHandle]) -> Deferred[PcapyHandle]:
        """
        Do something with a handle that takes long. In the thread, it is closed if that fails.

        @return: fires with the handle. On cancel it is closed as soon as the thread is done with it, and
            no sooner: what another thread works on must not be closed.
        """
        wanted: Deferred[PcapyHandle] = Deferred()
        working: Deferred[PcapyHandle] = self._run_in_thread(work)
        self._busy.add(working)

        def done(result: PcapyHandle | Failure) -> None:
            self._busy.discard(working)
            if not wanted.called:
                wanted.callback(result)
            elif isinstance(result, PcapyHandle):
                result.close()
            elif not result.check(PcapsvcError, OSError):  # type: ignore[no-untyped-call]
                self._log.failure("an interface could not be opened, and nobody waits for it", result)
            if not self._busy:
                idle, self._idle = self._idle, []
                for waiting in idle:
                    waiting.callback(None)

        working.addBoth(done)
        return wanted


def _expected_kind(index: int, snap_length: int, bpf: str) -> Kind | None:
    """What a handle will be, if that is known before it is opened."""
    link_type: int | None = LINUX_SLL
    name = ANY_INTERFACE
    if index != ANY_INDEX:
        name = name_of(index) or ""
        try:
            link_type = _LINK_TYPES.get(read_kernel_file(sysfs_path(name, "type")).strip())
        except OSError:
            link_type = None
    if link_type is None:
        return None
    return _kind(link_type, snap_length, netmask=_netmask_of(name) if uses_netmask(bpf) else 0)


def _kind(link_type: int, snap_length: int, *, netmask: int) -> Kind:
    return Kind(link_type=link_type, snap_length=kept_length(link_type, snap_length), netmask=netmask)


def _netmask_of(interface: str) -> int:
    """As pcap_lookupnet(3PCAP) finds it: that of the first IPv4 address; 0 if there is none."""
    request = _IFREQ.pack(encoded(interface), socket.AF_INET, 0, b"")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket, _SIOCGIFNETMASK, request)
        except OSError:
            return 0
    (netmask,) = struct.unpack("=I", _IFREQ.unpack(answer)[3])
    return int(netmask)


@implementer(IStandbyHandle)
class _StandbyHandle:
    """A handle that lets no packet pass."""

    def __init__(self, system: PcapySystem, handle: PcapyHandle) -> None:
        self._system = system
        self._handle = handle
        self._armed = False

    @property
    def index(self) -> int:
        return self._handle.index

    def check(self) -> None:
        # There may be packets that arrived before its filter was set.
        self._handle.discard_packets()

    def arm(self, bpf: str) -> Deferred[IPacketHandle]:
        self._armed = True
        return Deferred.fromCoroutine(self._system.arm(self._handle, bpf))

    def close(self) -> None:
        if not self._armed:
            self._handle.close()


def _as_rejection(failure: Failure) -> FilterRejected:
    """A rejection that may be due to the link type; any other failure is raised."""
    failure.trap(FilterRejected)  # type: ignore[no-untyped-call]
    rejection: FilterRejected = failure.value  # type: ignore[assignment]
    if "syntax error" in str(rejection):
        raise rejection
    return rejection
