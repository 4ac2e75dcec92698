"""URLs, taken apart."""

import gc

from .errors import SourceError


def is_url(name):
    """Whether ``name`` is a URL to fetch, not a file."""
    return name.split(":", 1)[0].lower() in ("http", "https") and "://" in name


def split_url(url):
    """(scheme, host, port, path with query) of an absolute URL. Raises SourceError."""
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    rest = rest.split("#", 1)[0]
    at = min([rest.find(mark) for mark in "/?" if mark in rest] or [len(rest)])
    authority, path = rest[:at], rest[at:]
    if not path.startswith("/"):
        path = "/" + path
    if "@" in authority:
        raise SourceError("address", "user and password do not belong in the URL: pass auth=")
    host, _, port = authority.rpartition(":") if _has_port(authority) else (authority, "", "")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    port = port or ("443" if scheme == "https" else "80")
    if scheme not in ("http", "https") or not host or not all(33 <= ord(c) < 127 for c in url):
        raise SourceError("address", "not an http:// or https:// URL: %s" % url)
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise SourceError("address", "not a port: %s in %s" % (port, url))
    return scheme, host, int(port), path


def _has_port(authority):
    return authority.rfind(":") > authority.rfind("]")


gc.collect()  # what loading left behind would divide a small heap
