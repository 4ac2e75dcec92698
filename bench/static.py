"""A static server for a directory, on loopback: nginx where it is there, else Python's.

nginx runs without root's rights, by a configuration and in a directory of its own.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from pathlib import Path
from typing import Any, Protocol

HOST = "127.0.0.1"
# Debian puts servers where only root's PATH leads to.
_PLACES = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
_NOBODY = 65534
_OPEN = "/tmp"
_PATIENCE_S = 60
_CONFIG = """
daemon off;
worker_processes 1;
pid {work}/pid;
error_log {work}/error.log;
events {{ worker_connections 1024; }}
http {{
    default_type application/octet-stream;
    log_format bytes '$status $request_length $bytes_sent $uri';
    access_log {work}/access.log bytes;
    client_body_temp_path {work}/body;
    proxy_temp_path {work}/proxy;
    fastcgi_temp_path {work}/fastcgi;
    uwsgi_temp_path {work}/uwsgi;
    scgi_temp_path {work}/scgi;
    sendfile on;
    server {{
        listen {host}:{port};
        root {directory};
    }}
}}
"""


@dataclass(frozen=True)
class Answer:
    """One answer of the server; ``received`` and ``sent``: bytes, headers included."""

    path: str
    status: int
    received: int
    sent: int


class Static(Protocol):
    """A server that runs. ``root``: its URL, without a slash at the end."""

    name: str
    root: str

    def answers(self) -> list[Answer]:
        """All since the last call."""


def find_nginx() -> str | None:
    return shutil.which("nginx", path=_PLACES)


@contextmanager
def public_directory() -> Iterator[Path]:
    """A temporary directory that a server without root's rights can read."""
    where = _OPEN if os.getuid() == 0 else None  # $TMPDIR may be for root alone
    with tempfile.TemporaryDirectory(dir=where) as name:
        os.chmod(name, 0o755)
        yield Path(name)


@contextmanager
def serving(directory: Path, nginx: str | None) -> Iterator[Static]:
    """Serve ``directory``, which everybody may read, by the program ``nginx`` or by Python."""
    if nginx is None:
        with _serving_by_python(directory) as server:
            yield server
        return
    with (
        public_directory() as work,
        socket.create_server((HOST, 0)) as listener,
        _running_nginx(nginx, directory, work, listener) as server,
    ):
        yield server


# --- nginx


@contextmanager
def _running_nginx(
    program: str, directory: Path, work: Path, listener: socket.socket
) -> Iterator[Static]:
    port = listener.getsockname()[1]
    config = work / "nginx.conf"
    config.write_text(_CONFIG.format(work=work, host=HOST, port=port, directory=directory))
    who: dict[str, Any] = {}
    if os.getuid() == 0:
        os.chown(work, _NOBODY, _NOBODY)
        who = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
    # The port is taken already: nginx takes it over as it does from a former nginx, so that nobody
    # can come between.
    child = subprocess.Popen(
        [program, "-p", str(work), "-c", str(config), "-e", "stderr"],
        env={"NGINX": f"{listener.fileno()};"},
        pass_fds=(listener.fileno(),),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **who,
    )
    listener.close()
    try:
        server = _Nginx(f"http://{HOST}:{port}", work / "access.log")
        server.answers()
        yield server
    finally:
        child.terminate()
        child.wait()


class _Nginx:
    def __init__(self, root: str, log: Path) -> None:
        self.name = "nginx"
        self.root = root
        self._log = log
        self._at = 0
        self._marks = 0

    def answers(self) -> list[Answer]:
        """The last line is of a request made for this: the one worker has written all others."""
        self._marks += 1
        mark = f"/mark-{self._marks}"
        with urllib.request.build_opener(_NoError).open(self.root + mark, timeout=_PATIENCE_S):
            pass
        until = time.monotonic() + _PATIENCE_S
        while True:
            with self._log.open("rb") as file:
                file.seek(self._at)
                data = file.read()
            lines = data.decode().splitlines()
            if lines and lines[-1].endswith(mark):
                self._at += len(data)
                return [_answer(line) for line in lines[:-1]]
            if time.monotonic() > until:
                raise TimeoutError(f"no '{mark}' in {self._log}")
            time.sleep(0.01)


class _NoError(urllib.request.HTTPErrorProcessor):
    def http_response(self, request: Any, response: Any) -> Any:
        return response


def _answer(line: str) -> Answer:
    status, received, sent, path = line.split(" ", 3)
    return Answer(path, int(status), int(received), int(sent))


# --- Python


class _Python:
    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.name = "Python's http.server"
        self.root = f"http://{HOST}:{server.server_address[1]}"
        self.noted: list[Answer] = []

    def answers(self) -> list[Answer]:
        found, self.noted[:] = list(self.noted), []
        return found


@contextmanager
def _serving_by_python(directory: Path) -> Iterator[Static]:
    class Handler(_Handler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(directory))

        def note(self, answer: Answer) -> None:
            static.noted.append(answer)

    with ThreadingHTTPServer((HOST, 0), Handler) as server:
        static = _Python(server)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield static
        finally:
            server.shutdown()
            thread.join()


class _Handler(SimpleHTTPRequestHandler):
    """Files with ETags, of time and size as nginx makes them."""

    protocol_version = "HTTP/1.1"

    def note(self, answer: Answer) -> None:
        raise NotImplementedError

    def setup(self) -> None:
        super().setup()
        self.wfile = _Counted(self.wfile)  # type: ignore[assignment]

    def do_GET(self) -> None:
        counted = self.wfile
        assert isinstance(counted, _Counted)
        counted.count = 0
        self._status = 0
        super().do_GET()
        received = len(self.requestline) + 2 + len(self.headers.as_bytes())
        self.note(Answer(self.path, self._status, received, counted.count))

    def send_head(self) -> Any:
        path = Path(self.translate_path(self.path))
        self._tag = ""
        if path.is_file():
            status = path.stat()
            self._tag = f'"{int(status.st_mtime):x}-{status.st_size:x}"'
        if self._tag and self.headers.get("If-None-Match") == self._tag:
            self.send_response(304)
            self.end_headers()
            return None
        return super().send_head()

    def send_response(self, code: int, message: str | None = None) -> None:
        self._status = code
        super().send_response(code, message)

    def end_headers(self) -> None:
        if self._tag:
            self.send_header("ETag", self._tag)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Counted:
    def __init__(self, file: BufferedIOBase) -> None:
        self._file = file
        self.count = 0

    def write(self, data: bytes) -> int:
        self.count += len(data)
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
