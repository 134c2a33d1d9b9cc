"""A TCP proxy on loopback, between the daemon and a broker, that fails as networks do."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any

_CHUNK_BYTES = 64 << 10
_PATIENCE_SECONDS = 10.0
# A close that is a reset (socket(7), SO_LINGER).
_RESET = struct.pack("ii", 1, 0)


class Cutter:
    """
    Forwards connections until it is made to fail. It runs in a thread of its own.

    @ivar port: its port on 127.0.0.1, which it keeps while it refuses connections.
    @ivar connections: how many connections it has accepted.
    """

    def __init__(self) -> None:
        # It reserves the port, and never listens, so that connections to it are refused.
        self._holder = socket.socket()
        self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._holder.bind(("127.0.0.1", 0))
        self.port: int = self._holder.getsockname()[1]
        self.connections = 0
        self._target = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="cutter")
        self._server: asyncio.Server | None = None
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._passing = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, target: int) -> None:
        """
        Start, and refuse connections at first.

        @param target: the broker's port on 127.0.0.1.
        """
        self._target = target
        self._loop.call_soon_threadsafe(self._passing.set)
        self._thread.start()

    def stop(self) -> None:
        """Cut all connections, and end."""
        if self._thread.is_alive():
            self._do(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()
        self._holder.close()

    def accept(self) -> None:
        """Accept connections."""
        self._do(self._listen())

    def refuse(self) -> None:
        """Reset all connections, and refuse new ones."""
        self._do(self._refuse())

    def cut(self, *, reset: bool) -> None:
        """
        Cut all connections, and accept new ones.

        @param reset: reset them, as if a process died with unread data; otherwise close them properly.
        """
        self._do(self._cut(reset))

    def silence(self, *, on: bool) -> None:
        """Forward nothing in either direction, while all stay connected; or resume."""
        self._loop.call_soon_threadsafe(self._passing.clear if on else self._passing.set)

    def _do(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_PATIENCE_SECONDS)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _refuse(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
        await self._cut(True)

    async def _cut(self, reset: bool) -> None:
        for near, far in list(self._pairs):
            if reset:
                try:
                    near.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                except OSError:
                    pass  # already closed
                near.transport.abort()
            else:
                near.close()
            far.transport.abort()

    async def _end(self) -> None:
        await self._refuse()
        for each in list(self._tasks):
            each.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        pair = None
        try:
            from_target, to_target = await asyncio.open_connection("127.0.0.1", self._target)
            pair = (writer, to_target)
            self._pairs.add(pair)
            ways = [
                asyncio.ensure_future(self._pass(reader, to_target)),
                asyncio.ensure_future(self._pass(from_target, writer)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except OSError:
            pass  # the broker is away
        finally:
            self._tasks.discard(task)
            if pair is not None:
                self._pairs.discard(pair)
                pair[1].transport.abort()
            writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(_CHUNK_BYTES):
                await self._passing.wait()
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
