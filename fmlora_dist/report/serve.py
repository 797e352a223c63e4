"""A report's page on this machine alone, made anew while a grid runs."""

import itertools
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from fmlora_dist.errors import UserError
from fmlora_dist.report.page import live

__all__ = ["Site"]


class Site:
    """Serves a page, and the files beside it, on the loopback address until it is left."""

    def __init__(self, folder: Path, port: int = 0):
        """``folder`` holds the files that the page refers to; port 0 takes one that is free.

        Raises:
            UserError: the port is taken.
        """
        self.page, self.version = b"", ""
        self._numbers = itertools.count(1)
        handler = partial(_Handler, self, directory=str(folder))
        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        except OSError as error:
            raise UserError(f"port: cannot listen on port {port}: {error.strerror}; choose another --port") from error
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}/"

    def show(self, page: str) -> None:
        """From now on serve this page; open ones reload."""
        version = str(next(self._numbers))
        self.page = live(page, version).encode()
        self.version = version

    def __enter__(self) -> "Site":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, site: Site, *arguments: Any, **options: Any):
        self.site = site  # before the base class, which answers the request while it is made
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        hosts = (f"127.0.0.1:{self.site.port}", f"localhost:{self.site.port}")
        if self.headers.get("Host") not in hosts:  # a page of elsewhere whose name was made to point here
            self.send_error(403)
        elif self.path in ("/", "/index.html"):
            self._answer("text/html; charset=utf-8", self.site.page)
        elif self.path == "/version":
            self._answer("text/plain", self.site.version.encode())
        else:
            super().do_GET()

    def _answer(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing: the terminal shows the report."""
