"""Where the bytes come from: a file, a stream, an http:// URL.

A source has ``readinto(buf)`` (the number of bytes, 0 at the end), ``size`` (in bytes, None if it
is not known), ``name`` and ``close()``. What goes wrong is a SourceError. A body that ends before
its announced size is an error here, not an end.
"""

import errno
import gc

from micropython import const

from .errors import SourceError

TIMEOUT_S = const(30)

_MAX_LINE = const(4096)
_LINE_PIECE = const(128)
_MAX_HEADERS = const(64)
_MAX_REDIRECTS = const(8)
_MAX_CHUNK_LINE = const(256)
_MAX_SIZE = const(0x3FFFFFFF)
_REDIRECTS = (301, 302, 303, 307, 308)
_POLL_MS = const(10)


def is_url(name):
    """Whether ``name`` is a URL that `open_source` fetches, not a file."""
    return name.split(":", 1)[0].lower() in ("http", "https") and "://" in name


def open_source(name, **request_args):
    """A source for a file name or a URL; `HttpSource` takes the ``request_args``."""
    return HttpSource(name, **request_args) if is_url(name) else FileSource(name)


class FileSource:
    """A file on the board."""

    def __init__(self, name):
        from os import stat

        self.name = name
        try:
            self.size = stat(name)[6]
            self._file = open(name, "rb")
        except OSError as error:
            raise SourceError("not-found", "cannot open %s: %s" % (name, _reason(error)))

    def readinto(self, buf):
        try:
            return self._file.readinto(buf)
        except OSError as error:
            raise SourceError("read", "cannot read %s: %s" % (self.name, _reason(error)))

    def close(self):
        self._file.close()


class StreamSource:
    """Any object with ``readinto(buf)``; it stays open.

    A stream that has nothing yet (None, as a UART answers) is asked again for ``timeout`` seconds.
    """

    name = "the stream"
    size = None

    def __init__(self, stream, timeout=TIMEOUT_S):
        self._stream = stream
        self._timeout_ms = int(timeout * 1000)

    def readinto(self, buf):
        count = self._stream.readinto(buf)
        if count is None:
            count = self._wait(buf)
        return count

    def _wait(self, buf):
        from time import sleep_ms

        for _ in range(0, self._timeout_ms, _POLL_MS):
            sleep_ms(_POLL_MS)
            count = self._stream.readinto(buf)
            if count is not None:
                return count
        raise SourceError("timeout", "no data from the stream for %d ms" % self._timeout_ms)

    def close(self):
        pass


class HttpSource:
    """The body of an http:// URL, redirects followed.

    ``headers``: a dict, sent as they are; ``auth``: (user, password), sent to the first host only;
    ``timeout``: seconds for the connection and for every read. ``stream`` and ``parse_headers`` of
    `requests.get` make no difference here.
    """

    def __init__(
        self, url, headers=None, auth=None, timeout=TIMEOUT_S, stream=None, parse_headers=None
    ):
        self.name = url
        self._timeout = timeout
        self._socket = None
        self._headers = dict(headers) if headers else {}
        if auth:
            self._headers["Authorization"] = _basic(auth)
        try:
            self._open(url)
        except OSError as error:
            self.close()
            raise self._failed(error)
        except Exception:
            self.close()
            raise

    def _open(self, url):
        for _ in range(_MAX_REDIRECTS + 1):
            scheme, host, port, path = split_url(url)
            self._connect(scheme, host, port)
            self._request(host, port, path)
            status, reason = self._read_status()
            location = self._read_headers()
            if status == 200:
                return
            self.close()
            if status not in _REDIRECTS or not location:
                error = SourceError("http-status", "HTTP Error: %d %s: %s" % (status, reason, url))
                error.status = status
                raise error
            url = join_url(url, location)
            if split_url(url)[1:3] != (host, port):  # another host: not its secret
                self._headers = {
                    key: value
                    for key, value in self._headers.items()
                    if key.lower() not in ("authorization", "cookie")
                }
        raise SourceError(
            "redirect", "more than %d redirects from %s" % (_MAX_REDIRECTS, self.name)
        )

    def _connect(self, scheme, host, port):
        import socket

        if scheme != "http":
            raise SourceError("address", "%s:// is not supported: %s" % (scheme, self.name))
        try:
            addresses = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
        except OSError as error:
            raise SourceError("address", "cannot find host %s: %s" % (host, _reason(error)))
        failure = None
        for address in addresses:
            self._socket = socket.socket(address[0], socket.SOCK_STREAM)
            self._socket.settimeout(self._timeout)
            try:
                self._socket.connect(address[-1])
                return
            except OSError as error:
                failure = error
                self.close()
        raise SourceError(
            "connect", "cannot connect to %s port %d: %s" % (host, port, _reason(failure))
        )

    def _request(self, host, port, path):
        headers = {
            "Host": host if port == 80 else "%s:%d" % (host, port),
            "User-Agent": "ota (MicroPython)",
            "Accept-Encoding": "identity",
            "Connection": "close",
        }
        own = {key.lower() for key in self._headers}
        lines = ["GET %s HTTP/1.1" % path]
        lines += ["%s: %s" % item for item in headers.items() if item[0].lower() not in own]
        lines += ["%s: %s" % item for item in self._headers.items()]
        for line in lines:
            if "\r" in line or "\n" in line:
                raise SourceError("address", "a line break in the URL or a header: %r" % line)
        self._socket.write("\r\n".join(lines).encode() + b"\r\n\r\n")

    def _read_line(self, limit=_MAX_LINE):
        line = b""
        while line[-1:] != b"\n":
            piece = self._socket.readline(_LINE_PIECE)  # allocates as much as it may read
            if piece is None:
                raise OSError(errno.ETIMEDOUT)
            if not piece:
                raise SourceError("connection", "%s closed the connection early" % self.name)
            line += piece
            if len(line) > limit:
                raise SourceError(
                    "protocol", "%s sent a line of more than %d bytes" % (self.name, limit)
                )
        return line

    def _read_status(self):
        line = self._read_line()
        parts = line.split(None, 2)
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
            raise SourceError("protocol", "%s does not answer in HTTP: %r" % (self.name, line[:32]))
        status = int(parts[1])
        if 100 <= status < 200:  # interim: the real answer follows
            self._read_headers()
            return self._read_status()
        reason = parts[2].strip() if len(parts) > 2 else b""
        return status, str(reason, "utf-8") if is_ascii(reason) else ""

    def _read_headers(self):
        """Learn how the body is delimited; the Location header, or None."""
        self.size = None
        self._chunked = False
        self._left = 0  # in the body, or in the chunk at hand
        self._received = 0
        location = None
        for _ in range(_MAX_HEADERS):
            line = self._read_line().strip()
            if not line:
                if self._chunked:
                    self.size = None
                self._left = self.size or 0
                return location
            name, _, value = line.partition(b":")
            name = name.strip().lower()
            value = value.strip()
            if name == b"content-length":
                self.size = self._parse_size(value)
            elif name == b"transfer-encoding":
                if value.lower() != b"chunked":
                    raise SourceError("protocol", "%s sends %r encoded" % (self.name, value))
                self._chunked = True
            elif name == b"content-encoding" and value.lower() != b"identity":
                raise SourceError("protocol", "%s sends %r encoded" % (self.name, value))
            elif name == b"location" and is_ascii(value):
                location = str(value, "utf-8")
        raise SourceError("protocol", "%s sent more than %d headers" % (self.name, _MAX_HEADERS))

    def _parse_size(self, value):
        size = int(value) if value.isdigit() and len(value) < 12 else -1
        if not 0 <= size <= _MAX_SIZE or self.size not in (None, size):
            raise SourceError("protocol", "%s sent Content-Length: %r" % (self.name, value))
        return size

    def readinto(self, buf):
        """Fill ``buf`` as far as the body goes; the number of bytes, 0 at the end.

        Raises SourceError if the body breaks off, telling how many bytes are missing.
        """
        if self._socket is None:
            return 0
        try:
            if self._chunked:
                return self._read_chunked(buf)
            if self.size is None:
                return self._read(buf, len(buf))
            if not self._left:
                return 0
            count = self._read(buf, min(self._left, len(buf)))
            if count == 0:
                raise SourceError(
                    "short",
                    "%s: the connection ended after %d of %d bytes: %d bytes are missing"
                    % (self.name, self._received, self.size, self._left),
                )
            self._left -= count
            return count
        except OSError as error:
            raise self._failed(error)

    def _read(self, buf, limit):
        """Up to ``limit`` bytes into ``buf``, without allocating."""
        count = self._socket.readinto(buf, limit)
        if count is None:
            raise OSError(errno.ETIMEDOUT)
        self._received += count
        return count

    def _read_chunked(self, buf):
        done = 0
        while done < len(buf):
            if not self._left and not self._next_chunk():
                break
            count = self._read(memoryview(buf)[done:] if done else buf, self._left)
            if count == 0:
                raise SourceError(
                    "short",
                    "%s: the connection ended after %d bytes: %d bytes or more are missing"
                    % (self.name, self._received, self._left),
                )
            done += count
            self._left -= count
            if not self._left and self._read_line(_MAX_CHUNK_LINE).strip():
                raise SourceError("protocol", "%s: a chunk is longer than it says" % self.name)
        return done

    def _next_chunk(self):
        """Read the size of the next chunk; False, and the socket closed, after the last one."""
        line = self._read_line(_MAX_CHUNK_LINE).split(b";")[0].strip()
        try:
            size = int(line, 16) if line and len(line) < 9 else -1
        except ValueError:
            size = -1
        if line[:1] in b"+-" or not 0 <= size <= _MAX_SIZE:
            raise SourceError("protocol", "%s: chunk of size %r" % (self.name, line[:16]))
        self._left = size
        if size:
            return True
        for _ in range(_MAX_HEADERS):
            if not self._read_line().strip():
                self.close()
                return False
        raise SourceError("protocol", "%s sent more than %d trailers" % (self.name, _MAX_HEADERS))

    def _failed(self, error):
        if error.errno in (errno.ETIMEDOUT, errno.EAGAIN):
            return SourceError("timeout", "no answer from %s for %s s" % (self.name, self._timeout))
        return SourceError(
            "connection", "connection to %s failed: %s" % (self.name, _reason(error))
        )

    def close(self):
        if self._socket:
            self._socket.close()
            self._socket = None


def split_url(url):
    """(scheme, host, port, path with query) of an absolute URL. Raises SourceError."""
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    rest = rest.split("#", 1)[0]
    at = min([rest.find(mark) for mark in "/?" if mark in rest] or [len(rest)])
    authority, path = rest[:at], rest[at:]
    if not path.startswith("/"):
        path = "/" + path
    host, _, port = authority.rpartition(":") if _has_port(authority) else (authority, "", "")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    port = port or ("443" if scheme == "https" else "80")
    if scheme not in ("http", "https") or not host or "@" in host or " " in url:
        raise SourceError("address", "not an http:// URL: %s" % url)
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise SourceError("address", "not a port: %s in %s" % (port, url))
    return scheme, host, int(port), path


def _has_port(authority):
    return authority.rfind(":") > authority.rfind("]")


def join_url(base, location):
    """The absolute URL of a Location header or another reference, relative to ``base``."""
    if is_url(location):
        return location
    scheme, _, rest = base.partition("://")
    if location.startswith("//"):
        return scheme + ":" + location
    authority, _, path = rest.partition("/")
    root = scheme + "://" + authority.split("?", 1)[0].split("#", 1)[0]
    if location.startswith("/"):
        return root + location
    path = path.split("#", 1)[0].split("?", 1)[0]
    if location.startswith("?"):
        return root + "/" + path + location
    folder = path.rpartition("/")[0]
    return root + "/" + (folder + "/" if folder else "") + location


def is_ascii(value):
    return all(32 <= byte < 127 for byte in value)


def _basic(auth):
    from binascii import b2a_base64

    user, password = auth
    return "Basic " + str(b2a_base64(("%s:%s" % (user, password)).encode()).strip(), "ascii")


def _reason(error):
    number = error.errno
    name = errno.errorcode.get(number) if hasattr(errno, "errorcode") else None
    return name or str(number)


gc.collect()  # what loading left behind would divide a small heap
