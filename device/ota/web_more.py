"""What web.py needs now and then: the page, the state, and orders. Not loaded in an update."""

import asyncio
import json
from os import stat, urandom
from time import ticks_ms

from esp32 import Partition
from micropython import const

from . import __version__, base, otadata
from .base import OTAError, SlotError
from .push_receiver import PushError

_ORDER = const(6)
_ORDERED = const(0x88)
_FETCH = const(1)
_CONFIRM = const(2)
_GO_BACK = const(3)
_PROOF_SIZE = const(32)
_PART = const(512)
_PAGE = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Encoding": "gzip",
    "X-Frame-Options": "DENY",
}


def prepare(page):
    """Set what a Page needs. Raises OTAError ("part") where the page's file is not installed."""
    page.boot = urandom(4).hex()  # another one after each restart
    page._ticks = ticks_ms()
    page.seconds = page._ticks // 1000
    try:
        stat(_path())
    except OSError:
        raise OTAError("part", "%s is missing: mpota install PORT --with web" % _path())
    base.unload("web_more")


def _path():
    return base.package_path() + "/web.gz"


def get(page, path):
    """The answer to a GET: see Page.answer."""
    if path == "/":
        return 200, _PAGE, open(_path(), "rb")
    if path == "/state":
        return 200, {"Content-Type": "application/json"}, state(page)
    return 404, {"Content-Type": "text/plain"}, b"there is nothing here"


async def send_file(stream, file):
    """Send a file, a part at a time, and close it."""
    try:
        file.seek(0)
        part = bytearray(_PART)
        count = file.readinto(part)
        while count:
            stream.write(memoryview(part)[:count])
            await stream.drain()
            count = file.readinto(part)
    finally:
        file.close()


class Readable:
    """A stream that has ``read(size)`` alone, as app servers have."""

    def __init__(self, stream):
        self._stream = stream

    async def readinto(self, buf):
        data = await self._stream.read(len(buf))
        buf[: len(data)] = data
        return len(data)


def state(page):
    """What the page shows of the board: JSON, as bytes. docs/PROTOCOL.md has the keys."""
    from network import hostname

    receiver = page.receiver
    fetched = page.fetched
    found = {
        "boot": page.boot,
        "up": page.seconds,
        "host": hostname(),
        "ota": __version__,
        "runs": str(receiver.runs, "utf-8"),
        "flags": receiver.flags,
        "fetched": fetched,
        "buttons": page.buttons and page.takes_orders,
        "url": page.takes_orders,
        "reboots": page.reboots,
    }
    if not receiver.active:  # it has the memory
        _look(found, receiver)
    if base.owner:
        found["state"] = "updating"
    elif (fetched and fetched["ended"]) or (receiver.is_done and receiver.needs_restart):
        found["state"] = "waiting"
    return json.dumps(found).encode()


def _look(found, receiver):
    from .chips import chip_name

    running = Partition(Partition.RUNNING)
    found["chip"] = receiver._chip
    found["chip_name"] = chip_name(receiver._chip)
    base.unload("chips")
    found["slot"] = running.info()[4]
    image = otadata.app_id(running)
    found["digest"] = image and image.hex()[:16]
    found["state"] = "trial" if _is_on_trial(running) else "confirmed"
    if otadata.has_home():
        from .boot import running as release

        release = release()
        found["release"] = [release[key] for key in ("name", "version") if key in release]
    try:
        info = otadata.find_next_slot().info()
        found["next"], found["room"] = info[4], info[3]
    except SlotError as error:
        found["next"], found["room"] = None, 0
        found["why"] = str(error)


def _is_on_trial(running):
    if otadata.state(running) == otadata.PENDING_VERIFY:
        return True
    if not otadata.has_home():
        return False
    from .boot import is_on_trial

    return is_on_trial()


# --- orders


def order(page, session, data):
    """An order has come: a message like those of push_receiver.py. docs/PROTOCOL.md has it."""
    receiver = page.receiver
    try:
        _take(page, session, data)
    except Exception as error:
        receiver.fail(session, error)


def _take(page, session, data):
    receiver = page.receiver
    proof = _PROOF_SIZE if receiver.flags & 1 else 0
    end = len(data) - proof
    if end < 2 or data[0] != _ORDER or not session.nonces or session.begun:
        raise PushError("protocol", "an order of %d bytes, out of place" % len(data))
    if not page.takes_orders:
        raise PushError("refused", "without a secret the board takes updates, and no orders")
    head = bytes(data[:end])
    if not receiver._is_proven(session, b"order", head, data[end:]):
        return
    what = head[1]
    if what == _FETCH:
        asyncio.create_task(_fetch(page, str(head[2:], "utf-8")))  # noqa: RUF006  the loop holds it
    elif what in (_CONFIRM, _GO_BACK) and page.buttons:
        _decide(page, what, session.link.task)
    else:
        raise PushError("refused", "the app on this board does not want that")
    session.link.send(bytes((_ORDERED, what)))
    receiver.lost(session)  # so that nobody can repeat the order
    session.link.close()


def _decide(page, what, task):
    from . import rollback

    running = Partition(Partition.RUNNING)
    if what == _CONFIRM:
        rollback.cancel()
        return
    if _is_on_trial(running):
        rollback.mark_invalid(reboot=False)
    else:
        rollback.force()
    page.restart(task)


async def _fetch(page, url):
    """Update from a URL, as far as `state` tells of it."""
    told = page.fetched = {"done": 0, "total": None, "error": None, "ended": False}

    def progress(done, total):
        told["done"], told["total"] = done, total

    try:
        from . import update

        await update.fetch(url, progress=progress, **page.download)
    except Exception as error:
        if not isinstance(error, OTAError):
            error = PushError("board", repr(error))
        told["error"] = error.code, str(error)
        return
    told["ended"] = True
    if page.reboots:
        page.restart()
