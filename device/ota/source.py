"""Where the bytes come from: a file, a stream (local.py), or a URL (http.py).

A source has ``readinto(buf)`` (the number of bytes, 0 at the end), ``size`` (in bytes, None if it
is not known), ``limit`` (the most bytes that it may have), ``name``, ``is_joined`` (what came may
not be one whole file: see `is_stale`) and ``close()``. What goes wrong is a SourceError. A body
that ends before its announced size is an error here, not an end.

Only files and URLs have ``opening()``, which does what ``open()`` does as a generator of the
milliseconds to wait, ``try_readinto(buf)``, which answers None where there is nothing yet,
``pass_over(count)``, to leave the next bytes out, and ``reading_end(buf)``, a generator like
``opening()`` that fills ``buf`` with the last bytes of the file, before that is opened.
"""

import gc

from micropython import const

from .errors import SourceError, no_memory

TIMEOUT_S = const(30)
LIMIT = const(0x8000000)  # bytes, if the caller names no limit: the largest flash there is


def is_url(name):
    """Whether ``name`` is a URL to fetch, not a file."""
    return name.split(":", 1)[0].lower() in ("http", "https") and "://" in name


def open_source(name, **request_args):
    """A source for a file name or a URL, open; `HttpSource` takes the ``request_args``."""
    return make_source(name, **request_args).open()


def make_source(name, **request_args):
    """As `open_source`, still to be opened."""
    if is_url(name):
        try:
            from .http import HttpSource

            return HttpSource(name, **request_args)
        except MemoryError as error:
            from .unload import unload

            unload("http_request", "http_more")
            raise no_memory(error, name, SourceError)
    from .local import FileSource

    return FileSource(name, request_args.get("limit"))


def is_stale(source, error):
    """Whether an update from ``source`` may have failed for what it put together alone.

    That is, for parts of two versions of a file, or for an end that nothing but the end of the
    connection told. Then it is worth a new attempt.
    """
    return error.code == "changed" or (
        source is not None and source.is_joined and not isinstance(error, SourceError)
    )


gc.collect()  # what loading left behind would divide a small heap
