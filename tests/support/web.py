"""Web servers on loopback for boards: ranges, TLS, and whatever can go wrong on the way."""

from __future__ import annotations

import datetime
import functools
import ipaddress
import os
import socket
import socketserver
import ssl
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_Server = TypeVar("_Server", bound=socketserver.BaseServer)

HOST = "localhost"
ADDRESS = "127.0.0.1"
PIECE = 4096


def check_localhost() -> None:
    """Servers are at 127.0.0.1, and boards reach them by name, which certificates have.

    Raises pytest.UsageError where that name leads elsewhere.
    """
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(HOST, None, socket.AF_INET)}
    except OSError as error:
        found = {str(error)}
    if ADDRESS not in found:
        raise pytest.UsageError(
            f"the tests need the name {HOST} to lead to {ADDRESS}, here it leads to "
            f"{', '.join(sorted(found))}: put a line '{ADDRESS} {HOST}' into /etc/hosts"
        )


@dataclass
class File:
    """What stands at a path. ``ranges``: whether parts of it can be had."""

    body: bytes
    etag: str | None = None
    last_modified: str | None = None
    ranges: bool = True
    chunked: bool = False


@dataclass
class Request:
    """A request that came in, and what of the answer's body went out."""

    path: str
    headers: dict[str, str]
    peer: tuple[str, int]
    status: int = 0
    sent: int = 0

    @property
    def start(self) -> int:
        """The first byte that was asked for; of the last bytes, minus their number."""
        value = self.headers.get("range", "bytes=0-")[6:]
        return int(value) if value.startswith("-") else int(value.split("-")[0])


class Hangup(Exception):
    """The server ends the connection."""


class Answered(Exception):
    """The request has had its answer."""


# What a server may do to a request instead of answering it well: called with the handler, and the
# number of body bytes sent so far, before each piece. It may raise Hangup.
Trouble = Callable[["Handler", int], None]


def drop(after: int) -> Trouble:
    """Close the connection after so many bytes of the body."""

    def trouble(handler: Handler, sent: int) -> None:
        handler.limit(after - sent)

    return trouble


def reset(after: int) -> Trouble:
    """A TCP reset instead of the rest."""

    def trouble(handler: Handler, sent: int) -> None:
        if sent >= after:
            linger = struct.pack("ii", 1, 0)
            handler.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            os.close(handler.request.detach())
            raise Hangup

    return trouble


def stall(after: int) -> Trouble:
    """Say nothing more until the board hangs up."""

    def trouble(handler: Handler, sent: int) -> None:
        if sent >= after:
            handler.rfile.read(1)
            raise Hangup

    return trouble


def status(line: str, *headers: str) -> Trouble:
    """Another answer than 200 or 206."""

    def trouble(handler: Handler, sent: int) -> None:
        handler.answer(line, [*headers, "Content-Length: 0"])
        raise Answered

    return trouble


class Handler(socketserver.StreamRequestHandler):
    server: WebServer

    def handle(self) -> None:
        try:
            while self._handle_one():
                pass
        except (Hangup, OSError):
            pass

    def _handle_one(self) -> bool:
        line = self.rfile.readline().decode()
        if not line:
            return False
        headers = {}
        while (header := self.rfile.readline().decode().strip()) != "":
            name, _, value = header.partition(":")
            headers[name.strip().lower()] = value.strip()
        self.asked = Request(line.split()[1], headers, self.client_address[:2])
        self.server.requests.append(self.asked)
        with suppress(Answered):
            self._respond(self.asked)
        return self.server.keep_alive

    def _respond(self, asked: Request) -> None:
        troubles = self.server.troubles
        self.trouble = troubles.pop(0) if troubles else None
        self._meet_trouble(0)
        entry = self.server.files.get(asked.path)
        if entry is None:
            self.answer("404 Not Found", ["Content-Length: 0"])
        elif callable(entry):
            entry(self)
        else:
            self._send_file(asked, entry)

    def _send_file(self, asked: Request, file: File) -> None:
        headers = ["Accept-Ranges: bytes"] if file.ranges else []
        if file.etag:
            headers.append(f"ETag: {file.etag}")
        if file.last_modified:
            headers.append(f"Last-Modified: {file.last_modified}")
        if file.etag and asked.headers.get("if-none-match") == file.etag:
            self.answer("304 Not Modified", headers)
            return
        start, line = 0, "200 OK"
        known = asked.headers.get("if-range")
        if file.ranges and asked.start and known in (None, file.etag, file.last_modified):
            start, line = asked.start, "206 Partial Content"
            if start < 0:
                start = max(0, len(file.body) + start)
            if start >= len(file.body):
                headers.append(f"Content-Range: bytes */{len(file.body)}")
                self.answer("416 Range Not Satisfiable", [*headers, "Content-Length: 0"])
                return
            headers.append(f"Content-Range: bytes {start}-{len(file.body) - 1}/{len(file.body)}")
        if file.chunked:
            headers.append("Transfer-Encoding: chunked")
        else:
            headers.append(f"Content-Length: {len(file.body) - start}")
        self.answer(line, headers)
        self._send_body(file.body[start:], file.chunked)

    def answer(self, line: str, headers: list[str]) -> None:
        if not self.server.keep_alive:
            headers = [*headers, "Connection: close"]
        self.asked.status = int(line.split()[0])
        self.wfile.write("\r\n".join([f"HTTP/1.1 {line}", *headers, "", ""]).encode())

    def _send_body(self, body: bytes, chunked: bool) -> None:
        for at in range(0, len(body), PIECE):
            self._meet_trouble(self.asked.sent)
            piece = body[at : at + PIECE]
            data = b"%x;x=y\r\n%s\r\n" % (len(piece), piece) if chunked else piece
            self.wfile.write(data)
            self.asked.sent += len(piece)
        if chunked:
            self.wfile.write(b"0\r\nX-Trailer: 1\r\n\r\n")

    def _meet_trouble(self, sent: int) -> None:
        if self.trouble:
            self.trouble(self, sent)

    def limit(self, left: int) -> None:
        if left <= 0:
            raise Hangup


class WebServer(socketserver.ThreadingTCPServer):
    """``troubles``: one for each of the next requests, None for none."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, context: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, File | Callable[[Handler], None]] = {}
        self.requests: list[Request] = []
        self.troubles: list[Trouble | None] = []
        self.keep_alive = True
        self._context = context
        self.handshakes: list[str] = []

    def get_request(self):  # type: ignore[no-untyped-def]
        request, address = super().get_request()
        # What the kernel takes from the server, and no board has asked for yet, stays small.
        request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return request, address

    def finish_request(self, request, client_address):  # type: ignore[no-untyped-def]
        if self._context:
            try:
                request = self._context.wrap_socket(request, server_side=True)
            except (ssl.SSLError, OSError) as error:
                self.handshakes.append(str(error))
                return
        super().finish_request(request, client_address)

    def handle_error(self, request, client_address):  # type: ignore[no-untyped-def]
        pass  # boards hang up in the middle, as they may

    @property
    def root(self) -> str:
        scheme = "https" if self._context else "http"
        return f"{scheme}://{HOST}:{self.server_address[1]}"

    def url(self, path: str) -> str:
        return self.root + path

    @property
    def sent(self) -> int:
        """Bytes of bodies that went out."""
        return sum(request.sent for request in self.requests)


@contextmanager
def running(server: _Server) -> Iterator[_Server]:
    """Serve until the block ends."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def serving(
    files: dict[str, File | Callable[[Handler], None]] | None = None,
    context: ssl.SSLContext | None = None,
) -> Iterator[WebServer]:
    with running(WebServer(context)) as server:
        server.files = dict(files or {})
        yield server


# --- certificates ------------------------------------------------------------------------------

NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)


@dataclass
class Identity:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    chain: list[x509.Certificate] = field(default_factory=list)

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def context(self, tls: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        """What a server that shows this certificate, and those between it and a root, needs."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if tls:
            context.maximum_version = tls
        chain = b"".join(
            one.public_bytes(serialization.Encoding.PEM) for one in (self.certificate, *self.chain)
        )
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "server.pem"
            path.write_bytes(self.key_pem + chain)
            context.load_cert_chain(path)
        return context


def issue(
    name: str,
    issuer: Identity | None = None,
    hosts: tuple[str, ...] = (),
    start: datetime.datetime = NOW - DAY,
    end: datetime.datetime = NOW + 365 * DAY,
    is_ca: bool = False,
) -> Identity:
    """A certificate for ``name``, signed by ``issuer``, by itself if that is None."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "XX"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example"),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
    )
    if hosts:
        names = [_general_name(host) for host in hosts]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    signed = builder.sign(issuer.key if issuer else key, hashes.SHA256())
    chain = [issuer.certificate, *issuer.chain] if issuer and issuer.chain else []
    if issuer and issuer.certificate.issuer != issuer.certificate.subject:
        chain = [issuer.certificate]
    return Identity(signed, key, chain)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


@functools.cache
def root() -> Identity:
    return issue("Test Root", is_ca=True)


@functools.cache
def server_identity() -> Identity:
    return issue(HOST, root(), (HOST, "127.0.0.1"))
