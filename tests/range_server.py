"""A folder served over HTTP by byte ranges, by a server that misbehaves on demand."""

import contextlib
import re
import socket
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FAULTS = ("stall", "reset", "500", "503", "truncate", "short", "ignore", "change")


class RangeServer:
    """Serves a folder on the loopback. `faults` are taken one a request; `always` is every request's, when set."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.faults: list[str] = []
        self.always = ""
        self.asked: list[tuple[str, str]] = []
        """(path, Range header) of every request."""
        self.released = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # head and body are two writes, and the second would wait 40 ms

            def do_GET(self) -> None:
                server._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def run(self) -> None:
        self._http.serve_forever(poll_interval=0.02)

    def stop(self) -> None:
        self.released.set()
        self._http.shutdown()
        self._http.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range", "")
        self.asked.append((request.path, wanted))
        fault = self.always or (self.faults.pop(0) if self.faults else "")
        path = self.folder / request.path.lstrip("/")
        if fault == "stall":
            self.released.wait(30)
        if self.released.is_set():  # a thread that still holds a connection of a stopped server
            request.close_connection = True
            return
        if fault == "reset":
            request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            request.close_connection = True
            request.connection.close()
            return
        if fault in ("500", "503") or not path.is_file():
            request.send_response(int(fault) if fault else 404)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        content = path.read_bytes()
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
        if span and fault != "ignore":
            content = content[int(span[1]) : int(span[2]) + 1]
        if fault == "short":
            content = content[: len(content) // 2]
        if fault == "change":
            content = bytes(byte ^ 1 for byte in content)
        request.send_response(206 if span and fault != "ignore" else 200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if fault == "truncate":
            content = content[: len(content) // 2]
            request.close_connection = True
        request.wfile.write(content)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[RangeServer]:
    """A server of the folder, stopped at the end."""
    server = RangeServer(folder)
    thread = threading.Thread(target=server.run, name="range server")
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()
