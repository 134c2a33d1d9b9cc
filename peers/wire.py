"""A virtual wire: a veth pair whose far end is in a network namespace of its own."""

from __future__ import annotations

import ctypes
import itertools
import os
import socket
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from peers.requirement import require_command, require_root

_CLONE_NEWNET = 0x40000000  # sched.h, setns(2)
_LONGEST_SEND_SECONDS = 30.0
_PATIENCE_SECONDS = 60.0
_SEND_BUFFER_BYTES = 4 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count()

Made = TypeVar("Made")


def _ip(program: str, *words: str) -> str:
    run = subprocess.run([program, *words], check=True, capture_output=True, text=True, timeout=60)
    return run.stdout


def no_ipv6(interface: str) -> None:
    """Have an interface carry no IPv6, and nothing that the kernel itself sends with it."""
    switch = Path("/proc/sys/net/ipv6/conf", interface, "disable_ipv6")
    if switch.exists():
        switch.write_text("1")


def _clean_up(program: str, interface: str, namespace: str) -> None:
    """Delete the link first: the kernel deletes the links of a namespace some time later."""
    for words in (["link", "delete", interface], ["netns", "delete", namespace]):
        subprocess.run([program, *words], check=False, capture_output=True, timeout=60)


def clean_up_after(pid: int) -> None:
    """Remove the wires of a process that was killed: with a namespace go both ends."""
    for path in Path("/run/netns").glob(f"{_namespace(pid, '*')}"):
        subprocess.run(["ip", "netns", "delete", path.name], check=False, capture_output=True, timeout=60)


def _namespace(pid: int, number: int | str) -> str:
    return f"pcapsvc-pw{pid:x}n{number}"


def within(namespace: str, make: Callable[[], Made]) -> Made:
    """
    Call a function in another network namespace (network_namespaces(7)).

    A socket stays in the namespace of the thread that created it. So the function runs in a thread of its
    own, which enters the namespace. Threads that it starts are there, too.

    @return: the function's result.
    @raise Exception: what the function raises.
    """
    made: list[Made] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            with open(f"/run/netns/{namespace}") as there:
                if _libc.setns(there.fileno(), _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            made.append(make())
        except Exception as error:  # noqa: BLE001 - it is raised in the waiting thread
            errors.append(error)

    thread = threading.Thread(target=run, name="wire")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return made[0]


def _packet_socket(interface: str) -> socket.socket:
    """A packet socket (packet(7)) that only sends."""
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    packets.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    packets.bind((interface, 0))
    return packets


class Wire:
    """
    A veth pair (veth(4)) that carries nothing but what a test sends.

    Neither end has an address, ARP, multicast or IPv6, so the counts are exact.

    @ivar interface: the near end, in the test's own namespace, to capture on.
    @ivar far: the far end, in the other namespace.
    @ivar namespace: the namespace's name, for C{ip netns exec}.
    """

    def __init__(self) -> None:
        require_root("to make a network namespace")
        self._program = require_command("ip", "iproute2")
        self.namespace = _namespace(os.getpid(), next(_numbers))
        own = self.namespace.removeprefix("pcapsvc-")
        self.interface = f"{own}a"
        self.far = f"{own}b"
        self._socket: socket.socket | None = None
        self._finalizer: weakref.finalize[[str, str, str], Wire] | None = None

    def start(self) -> None:
        """Create both ends, and bring them up."""
        self._finalizer = weakref.finalize(self, _clean_up, self._program, self.interface, self.namespace)
        _ip(self._program, "netns", "add", self.namespace)
        inside = ["netns", "exec", self.namespace]
        default = "/proc/sys/net/ipv6/conf/default/disable_ipv6"
        _ip(self._program, *inside, "sh", "-c", f"! test -e {default} || echo 1 >{default}")
        self.make()

    def make(self) -> None:
        """Create both ends again, after L{delete}."""
        self._close()
        _ip(
            self._program,
            *("link", "add", self.interface, "type", "veth"),
            *("peer", "name", self.far, "netns", self.namespace),
        )
        no_ipv6(self.interface)
        quiet = ["addrgenmode", "none", "arp", "off", "multicast", "off", "up"]
        _ip(self._program, "link", "set", self.interface, *quiet)
        _ip(self._program, "-n", self.namespace, "link", "set", self.far, *quiet)
        self.wait_until_up()
        self._socket = within(self.namespace, lambda: _packet_socket(self.far))

    def stop(self) -> None:
        """Remove whatever is left of it."""
        self._close()
        if self._finalizer is not None:
            self._finalizer()
            self._finalizer = None

    def send(self, frames: Sequence[bytes], rate: float | None = None) -> int:
        """
        Send frames from the far end. It blocks until the last one is sent: use a thread if there is a rate.

        @param rate: frames a second; L{None} is as fast as possible.
        @return: how many were sent: all of them.
        @raise ValueError: it would take longer than 30 seconds.
        """
        assert self._socket is not None, "the wire is not up"
        if rate is not None and len(frames) / rate > _LONGEST_SEND_SECONDS:
            raise ValueError(f"{len(frames)} frames at {rate} a second take too long")
        started = time.monotonic()
        for number, frame in enumerate(frames):
            if rate is not None:
                wait = started + number / rate - time.monotonic()
                if wait > 0:
                    time.sleep(wait)
            self._socket.send(frame)
        return len(frames)

    def down(self) -> None:
        """Take the near end down."""
        _ip(self._program, "link", "set", self.interface, "down")

    def up(self) -> None:
        """Bring the near end up again."""
        _ip(self._program, "link", "set", self.interface, "up")
        self.wait_until_up()

    def delete(self) -> None:
        """Delete both ends, as if a device were unplugged."""
        _ip(self._program, "link", "delete", self.interface)

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def wait_until_up(self) -> None:
        """
        Wait until both ends send and receive.

        A carrier is not enough: the kernel gives an end whose peer went down a queue that drops everything,
        without an error, and takes it away some time after the peer is up again. It does so together with
        the change of the operational state, under the lock that C{ip} needs to read it.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        for where in (["link", "show", self.interface], ["-n", self.namespace, "link", "show", self.far]):
            while "state UP" not in _ip(self._program, *where):
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{self.interface} does not come up")
                time.sleep(0.005)
