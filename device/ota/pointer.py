"""A JSON file that points to a firmware: `firmware`, `sha`, `length`, as micropython-esp32-ota."""

from .redirect import join_url
from .source import open_source
from .url import is_url

_MAX_SIZE = 4096


def read_pointer(url, **request_args):
    """(firmware, sha, length) of such a file; a relative firmware is made relative to the file.

    Raises KeyError if a key is missing, and SourceError.
    """
    from json import loads

    source = open_source(url, **request_args)
    try:
        text = bytearray(_MAX_SIZE)
        size = 0
        while size < _MAX_SIZE:
            count = source.readinto(memoryview(text)[size:])
            if not count:
                break
            size += count
    finally:
        source.close()
    data = loads(bytes(memoryview(text)[:size]))
    try:
        firmware, sha, length = data["firmware"], data["sha"], data["length"]
    except KeyError:
        if "payloads" in data:
            from .errors import ReleaseError

            raise ReleaseError(
                "manifest", "%s is the manifest of a release: ota.release.install() takes it" % url
            )
        print('OTA json must include "firmware", "sha" and "length" keys.')
        raise
    if is_url(url):
        firmware = join_url(url, firmware)
    elif not is_url(firmware) and not firmware.startswith("/"):
        folder = url.rpartition("/")[0]
        firmware = folder + "/" + firmware if folder else firmware
    return firmware, sha, length
