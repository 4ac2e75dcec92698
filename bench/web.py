"""An HTTP server for measurements: ranges, and connections that break when they are told to."""

from __future__ import annotations

import http.server
import re
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

HOST = "127.0.0.1"
_ETAG = '"1"'  # of every file: none changes


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        body = self.server.files.get(self.path.lstrip("/"))
        if body is None:
            self.send_error(404)
            return
        start = 0
        if self.headers.get("If-None-Match") == _ETAG:
            self.send_response(304)
            self.send_header("ETag", _ETAG)
            self.end_headers()
            return
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and int(asked[1]) < len(body):
            start = int(asked[1])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("ETag", _ETAG)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        breaks = self.server.breaks
        if breaks:
            self.wfile.write(body[start : max(start, int(breaks.pop(0) * len(body)))])
            self.close_connection = True
        else:
            self.wfile.write(body[start:])

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    """``breaks``: where the next connections break, as shares of the file."""

    daemon_threads = True

    def __init__(self, files: Mapping[str, bytes], context: ssl.SSLContext | None) -> None:
        super().__init__((HOST, 0), _Handler)
        self.files = files
        self.breaks: list[float] = []
        self.scheme = "http"
        if context is not None:
            self.scheme = "https"
            self.socket = context.wrap_socket(self.socket, server_side=True)

    @property
    def root(self) -> str:
        return f"{self.scheme}://{HOST}:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # boards hang up in the middle, as they may


@contextmanager
def serving(files: Mapping[str, bytes], context: ssl.SSLContext | None = None) -> Iterator[Server]:
    with Server(files, context) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
