"""An update beside the other tasks of an asyncio program.

    await ota.update.fetch("https://server/firmware.bin", cafile="root.pem")

Other tasks wait for one flash block at most: a sector of 4 KiB is erased, written and read back in
some 60 ms. What MicroPython does in one go takes longer: the look-up of a host name, each step of a
TLS handshake, and, at the very end, the check of the whole image in set_boot().
"""

from asyncio import sleep_ms

from .connection import POLL_MS
from .errors import OTAError
from .image import SECTOR
from .update import OTA


async def fetch(
    url,
    sha="",
    length=0,
    *,
    verify=True,
    force=False,
    progress=None,
    block_size=SECTOR,
    **request_args,
):
    """Update from a URL or a file; the number of bytes, once the next boot takes the new app.

    Arguments: see ota.update.from_file. Nothing is printed (``log=print`` tells of failures that
    are survived), and the board is not restarted. Raises OTAError. A task that is cancelled leaves
    the running app selected, and the next download goes on where it was.
    """
    options = {"force": force, "progress": progress, "block_size": block_size}
    update = OTA(verify, False, False, **options)
    try:
        return await _take(update, url, sha, length, request_args)
    except OTAError as error:
        if not update.is_stale(error):
            raise
    update.drop()
    update = OTA(verify, False, False, **options)
    return await _take(update, url, sha, length, request_args)


async def _take(update, url, sha, length, request_args):
    with update:
        source = update.make_source(url, sha, **request_args)
        try:
            for pause_ms in source.opening():
                await sleep_ms(pause_ms)
            update.begin(source.size, sha, length)
            total = 0
            while True:
                count = source.try_readinto(update.buffer())
                if count is None:
                    await sleep_ms(POLL_MS)
                    continue
                total += count
                if not update.take(count):
                    return total
                await sleep_ms(0)
        finally:
            source.close()
