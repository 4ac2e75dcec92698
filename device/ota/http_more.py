"""What is rare in HTTP, loaded when it comes: redirects, authorization.

And where one URL leads to another: relative references, and the JSON file that names a firmware.
What goes along of the caller's headers, and that https does not lead to http, is up to http_ask.py.
"""

import gc

from micropython import const

from .errors import SourceError, no_memory
from .source import LIMIT, is_url, open_source

_MAX_REDIRECTS = const(8)
_MAX_JSON = const(4096)


def follow(client, url, first, more):
    """A generator: go where the answer that ``client`` has for ``url`` leads, to its end."""
    from .http_ask import check_step, get_one, location

    target = first
    for _ in range(_MAX_REDIRECTS):
        place = location(client)
        if not place:
            return
        url = join_url(url, _escape(place))
        from .http_request import split_url as step

        before, target = target, step(url)
        step = None
        check_step(client, before, target, "redirects")
        yield from get_one(client, target, more)
    if location(client):
        raise SourceError("redirect", "more than %d redirects from %s" % (_MAX_REDIRECTS, first[1]))


def _escape(location):
    """A Location header as a URL: what is not ASCII, or a blank, as browsers take it."""
    return "".join([chr(byte) if 32 < byte < 127 else "%%%02X" % byte for byte in location])


def join_url(base, reference):
    """The absolute URL of ``reference``, relative to ``base``: RFC 3986, 5.2."""
    if is_url(reference):
        start, path = _split_path(reference)
        return start + remove_dots(path)
    scheme = reference.partition(":")[0]
    if scheme != reference and not any(mark in scheme for mark in "/?#"):
        raise SourceError("address", "not an http:// or https:// URL: %s" % reference)
    if reference.startswith("//"):
        return join_url(base, base.partition("://")[0] + ":" + reference)
    start, path = _split_path(base)
    path = path.partition("#")[0]
    if reference and reference[0] not in "#":
        path = path.partition("?")[0]
        if reference[0] == "/":
            path = ""
        elif reference[0] != "?":
            path = path.rpartition("/")[0] + "/"
    return start + remove_dots(path + reference)


def _split_path(url):
    """What is before the path of an absolute URL, and the path with what is behind it."""
    at = url.find("://") + 3
    while at < len(url) and url[at] not in "/?#":
        at += 1
    path = url[at:]
    return url[:at], path if path.startswith("/") else "/" + path


def remove_dots(path):
    """An absolute path, with what may be behind it, without "." and "..": RFC 3986, 5.2.4."""
    at = min([path.find(mark) for mark in "?#" if mark in path] or [len(path)])
    found = []
    parts = path[:at].split("/")[1:]
    for part in parts:
        if part == "..":
            found = found[:-1]
        elif part != ".":
            found.append(part)
    if parts[-1] in (".", ".."):
        found.append("")
    return "/" + "/".join(found) + path[at:]


def resolve(base, reference):
    """A URL or path that is relative to that of the file, or the URL, that names it."""
    if is_url(base):
        return join_url(base, reference)
    if is_url(reference) or reference.startswith("/"):
        return reference
    folder = base.rpartition("/")[0]
    return folder + "/" + reference if folder else reference


def authorization(auth):
    """The header for (user, password), or for a bearer token."""
    if isinstance(auth, str):
        return "Bearer " + auth
    from binascii import b2a_base64

    return "Basic " + str(b2a_base64(("%s:%s" % tuple(auth)).encode()).strip(), "ascii")


def read_json(url, **request_args):
    """(firmware, sha, length) of a JSON file as micropython-esp32-ota has them.

    A relative ``firmware`` is made relative to the file. Raises SourceError, and ReleaseError if it
    is the manifest of a release.
    """
    from json import loads

    request_args["limit"] = _MAX_JSON
    source = open_source(url, **request_args)
    try:
        data = bytearray(_MAX_JSON + 1)
        size = 0
        while True:
            count = source.readinto(memoryview(data)[size:])
            if not count:
                break
            size += count
    finally:
        source.close()
    data = bytes(memoryview(data)[:size])
    try:
        found = loads(data)
    except MemoryError as error:
        raise no_memory(error, url, SourceError)
    except (ValueError, RuntimeError):  # RuntimeError: too deep for the interpreter's stack
        raise _no_json(url, "it is no JSON: it begins with %s" % str(data[:32])[1:])
    if not isinstance(found, dict):
        raise _no_json(url, "it is JSON, but no object")
    if "payloads" in found:
        from .errors import ReleaseError

        raise ReleaseError(
            "manifest", "%s is the manifest of a release: ota.release.install() takes it" % url
        )
    for key, kind in (("firmware", str), ("sha", str), ("length", int)):
        if key not in found:
            raise _no_json(
                url,
                'OTA json must include "firmware", "sha" and "length" keys, it has no "%s"' % key,
            )
        if type(found[key]) is not kind and (key == "firmware" or found[key] is not None):
            raise _no_json(url, '"%s" in it has a wrong type' % key)
    firmware, sha, length = found["firmware"], found["sha"], found["length"]
    if not firmware or not 0 <= (length or 0) <= LIMIT:
        raise _no_json(url, '"firmware" or "length" in it is out of range')
    return resolve(url, firmware), sha or "", length or 0


def _no_json(url, what):
    return SourceError("json", "%s is not what updates are named by: %s" % (url, what))


gc.collect()  # what loading left behind would divide a small heap
