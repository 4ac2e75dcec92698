"""What is rare in a request: a redirect, and an authorization."""

from micropython import const

from .errors import SourceError
from .url import is_url, split_url

_MAX_REDIRECTS = const(8)
# What may go to a host that the user did not name. Anything else may be a secret.
_HARMLESS = ("accept", "accept-language", "user-agent")


def follow(client, url, first, more):
    """A generator: go where the answer that ``client`` has for ``url`` leads, to its end.

    ``first``: the target that the user named, to which alone the user's own headers go.
    """
    for _ in range(_MAX_REDIRECTS):
        location = client.location()
        if not location:
            return
        url = join_url(url, location)
        target = split_url(url)
        if first[0] == "https" != target[0]:
            raise SourceError("redirect", "%s redirects from https to http" % first[1])
        headers = [
            (name, value)
            for name, value in client.headers.items()
            if target[:3] == first[:3] or name.lower() in _HARMLESS
        ]
        yield from client.ask(target, headers + list(more))
    if client.location():
        raise SourceError("redirect", "more than %d redirects from %s" % (_MAX_REDIRECTS, first[1]))


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


def authorization(auth):
    """The header for (user, password), or for a bearer token."""
    if isinstance(auth, str):
        return "Bearer " + auth
    from binascii import b2a_base64

    return "Basic " + str(b2a_base64(("%s:%s" % tuple(auth)).encode()).strip(), "ascii")
