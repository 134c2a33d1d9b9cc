"""An HTTP proxy in front of several nodes, each below a path of its own."""

from __future__ import annotations

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import cast

_PATIENCE_SECONDS = 180


class PathProxy:
    """
    Passes on C{/NAME/PATH} as C{/PATH} to a node. What else it is asked for, it doesn't find.

    @ivar ports: by name, where the nodes listen on 127.0.0.1.
    @ivar url: its own.
    """

    def __init__(self) -> None:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.ports = self._server.ports
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def start(self) -> None:
        """Start it."""
        self._thread.start()

    def stop(self) -> None:
        """End it. What it is passing on ends with the nodes."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(_PATIENCE_SECONDS)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self.ports: dict[str, int] = {}


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def _pass_on(self) -> None:
        _, name, path = self.path.split("/", 2) if self.path.count("/") > 1 else ("", "", "")
        port = cast(_Server, self.server).ports.get(name)
        if port is None:
            self.send_error(404)
            return
        node = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_SECONDS)
        try:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            node.request(self.command, f"/{path}", body or None, dict(self.headers))
            answer = node.getresponse()
            self.send_response_only(answer.status)
            for header, value in answer.getheaders():
                if header not in ("Connection", "Transfer-Encoding"):
                    self.send_header(header, value)
            self.end_headers()
            while piece := answer.read1(65536):
                self.wfile.write(piece)
        except (OSError, http.client.HTTPException):
            pass  # one of them is gone
        finally:
            node.close()

    do_GET = do_POST = do_DELETE = _pass_on
