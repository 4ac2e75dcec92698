# Many simulated boards in one process of MicroPython: the board's own code polls, decides, judges
# manifests and fetches payloads over HTTP. What is silicon is a few lines here: an id, NVS, what
# stands in the slots. Time is simulated: it goes from one poll to the next, and stands in between.
#
# crowd.py starts it, and talks to it: a line of JSON each way. See there for the fields.

import heapq
import json
import sys
import time as clock
import vfs

_PAUSE_US = 50  # while a board waits for a socket
_LONG_MS = 100  # what boards wait longer for is no socket: time goes on
_SECTOR = 4096
_APP_AT = (0x10000, 0x210000)
_SLOT_SIZE = 0x200000
_OTADATA = (1, 0, 0xD000, 0x2000, "otadata", False)
_COLLECTED = 4 << 20  # bytes between two collections of garbage

board = None  # whose code runs
now_ms = 0
start_s = 0  # of 1970


class Reset(BaseException):
    pass


class Board:
    """``apps``: the SHA-256 (hex) of the apps in the two slots."""

    def __init__(self, number, unique_id, app):
        self.number = number
        self.unique_id = unique_id
        self.nvs = {}
        self.apps = [app, None]
        self.runs = self.boots = 0
        self.taken = []  # forms of what is installed: [kind, encoding, size]
        self.entry = None  # what to remember of that release, once it is confirmed
        self.client = None


# --- what the board's modules import


class Posing:
    """A built-in module with some of its attributes exchanged."""

    def __init__(self, module, **attributes):
        self._module = module
        for name, value in attributes.items():
            setattr(self, name, value)

    def __getattr__(self, name):
        return getattr(self._module, name)


class NVS:
    def __init__(self, namespace):
        self._values = board.nvs

    def get_blob(self, key, buf):
        value = self._values.get(key)
        if value is None:
            raise OSError(-0x1102)  # ESP_ERR_NVS_NOT_FOUND
        if len(value) > len(buf):
            raise OSError(-0x110C)
        buf[: len(value)] = value
        return len(value)

    def set_blob(self, key, value):
        self._values[key] = bytes(value)

    def erase_key(self, key):
        if self._values.pop(key, None) is None:
            raise OSError(-0x1102)

    def commit(self):
        pass


class Partition:
    BOOT = 0
    RUNNING = 1
    TYPE_APP = 0
    TYPE_DATA = 1

    def __init__(self, which):
        self._slot = board.boots if which == self.BOOT else board.runs
        self._info = _app_info(self._slot)

    @staticmethod
    def find(type=0, subtype=0xFF, label=None):
        if type == Partition.TYPE_APP:
            return [_AnyPartition(slot, _app_info(slot)) for slot in (0, 1)]
        if subtype in (0, 0xFF) and label in (None, "otadata"):
            return [_AnyPartition(None, _OTADATA)]
        return []

    def info(self):
        return self._info

    def get_next_update(self):
        slot = 1 - self._slot
        return _AnyPartition(slot, _app_info(slot))

    def readblocks(self, block, buf, offset=0):
        if self._slot is None:
            buf[:] = _otadata_record(block)[: len(buf)]
            return
        app = board.apps[self._slot]
        at = block * _SECTOR + offset
        have = 0
        if app:
            file = _app_files[app]
            file.seek(at)
            have = file.readinto(buf)
        for index in range(have, len(buf)):
            buf[index] = 0xFF


class _AnyPartition(Partition):
    def __init__(self, slot, info):
        self._slot, self._info = slot, info


def _app_info(slot):
    return (0, 0x10 + slot, _APP_AT[slot], _SLOT_SIZE, "ota_%d" % slot, False)


def _otadata_record(sector):
    # The valid one of the higher number selects: slot (number - 1) % 2. Everything is confirmed.
    import struct
    from binascii import crc32

    seq = 2 if sector else (1 if board.boots else 3)
    number = struct.pack("<I", seq)
    return number + b"\xff" * 20 + struct.pack("<II", 2, crc32(number, 0xFFFFFFFF))


_app_files = {}
_digests = {}  # of apps, as delta.py works them out


def _reset():
    raise Reset


def _sleep_ms(count):
    global now_ms
    if count < _LONG_MS:
        clock.sleep_us(_PAUSE_US)
    else:
        now_ms += count


def _ticks_ms():
    return now_ms & clock.ticks_add(0, -1)


def _gmtime(seconds=None):
    return clock.gmtime(start_s + now_ms // 1000 if seconds is None else seconds)


def _exchange_modules(config):
    import builtins
    import gc

    modules = sys.modules
    modules["time"] = Posing(
        clock,
        sleep_ms=_sleep_ms,
        ticks_ms=_ticks_ms,
        gmtime=_gmtime,
        time=lambda: start_s + now_ms // 1000,
    )
    modules["esp32"] = Posing(sys, NVS=NVS, Partition=Partition)
    modules["machine"] = Posing(
        sys, unique_id=lambda: board.unique_id, reset=_reset, reset_cause=lambda: 2,
        PWRON_RESET=1, HARD_RESET=2, WDT_RESET=3, DEEPSLEEP_RESET=4, SOFT_RESET=5,
    )  # fmt: skip
    modules["flashbdev"] = Posing(sys, bdev=None)
    # A heap of many boards takes its time to be collected: now and then, not at each step.
    gc.threshold(_COLLECTED)
    modules["gc"] = Posing(gc, collect=lambda: 0)
    modules["sys"] = Posing(sys, platform="esp32", implementation=_Implementation(config["board"]))
    # The same signature gives the same number, on whichever board: it is worked out once.
    powers = {}
    power = builtins.pow

    def remembered(*args):
        if args not in powers:
            powers[args] = power(*args)
        return powers[args]

    builtins.pow = remembered


class _Implementation:
    def __init__(self, name):
        self._machine = name
        self._mpy = sys.implementation._mpy
        self.name = "micropython"
        self.version = sys.implementation.version


# --- the package, without a flash behind it


class _Dropped:
    """A stage for the bytes of a payload: they are counted, and that is all."""

    def __init__(self, item):
        self._left = item.size

    def wanted(self):
        return self._left

    def write(self, view):
        self._left -= len(view)

    def work(self):
        return False

    def skip(self):
        return 0

    def finish(self):
        if self._left:
            raise ValueError("%d bytes are missing" % self._left)


def _open(release, item, is_thin=False):
    if not item.is_taken:
        return None
    item.is_taken = False
    board.taken.append((item.kind, item.encoding, item.size))
    if item.kind == "app":
        board.apps[1 - board.runs] = item.sha256
    return _Dropped(item)


def _committing(release):
    from ota.base import ReleaseError, release_slot

    if any(item.is_taken for item in release.items):
        raise ReleaseError("member", "the release is not complete")
    yield 0
    board.entry = release._entry
    board.boots = 1 - board.runs
    release._app = True  # a restart is due
    release_slot(release)


def _prepare_package():
    import ota.base

    ota.base.unload = lambda *names: None  # no module is loaded twice
    import ota.delta
    import ota.release

    ota.release.Release.open = _open
    ota.release.Release.committing = _committing


# --- the boards


class Crowd:
    def __init__(self, config):
        self._config = config
        self._given = json.dumps([config["args"], config["options"]])
        self._failing = config["failing"]  # versions that are never confirmed -> numbers of boards
        self._due = []  # heap of (ms, number)
        self._boards = {}
        self._polls = 0
        for number, unique_id in config["boards"]:
            made = Board(number, bytes.fromhex(unique_id), config["app"])
            self._boards[number] = made
            self._as(made, self._begin)

    def _as(self, one, function):
        global board
        board = one
        # What this module remembers is of what runs.
        sys.modules["ota.delta"]._known = _digests.setdefault(one.apps[one.runs], {})
        return function(one)

    def _begin(self, one):
        import ota.keys as keys

        trust = keys.Trust()
        trust.change(self._config["keys"], ())
        trust.name, trust.version, trust.counter = self._config["release"]
        trust.save()
        self._start(one)

    def _start(self, one):
        # What an app does in each boot.
        name = self._config["module"]
        __import__(name)
        make = getattr(sys.modules[name], self._config["client"])
        args, options = json.loads(self._given.replace("{id}", one.unique_id.hex()))
        one.client = make(*args, restart=_reset, **options)
        self._schedule(one)

    def _schedule(self, one):
        left = clock.ticks_diff(one.client.due, _ticks_ms())
        heapq.heappush(self._due, (now_ms + max(0, left), one.number))

    def run(self, until_ms):
        """Let time go on until then."""
        global now_ms
        self._polls = 0
        while self._due[0][0] < until_ms:
            now_ms, number = heapq.heappop(self._due)
            self._as(self._boards[number], self._turn)
        now_ms = until_ms
        codes = {}
        for one in self._boards.values():
            codes[one.client.code] = codes.get(one.client.code, 0) + 1
        _say({"polls": self._polls, "codes": codes})

    def _turn(self, one):
        self._polls += 1
        try:
            one.client.poll()
        except Reset:
            self._reset(one)
            return
        if one.client.error:
            self._tell(one, "error", one.client.error.code, str(one.client.error))
        self._schedule(one)

    def _reset(self, one):
        entry, one.entry = one.entry, None
        version = entry["version"]
        is_good = one.number not in self._failing.get(version, ())
        if is_good:
            one.runs = one.boots
            from ota.confirm import apply_trust

            apply_trust(entry)
        else:  # the bootloader takes what ran before
            one.boots = one.runs
        self._tell(one, "runs" if is_good else "failed", version, one.taken)
        one.taken = []
        self._start(one)

    def _tell(self, one, what, *more):
        _say([now_ms // 1000, one.number, what] + list(more))


def _say(message):
    # Piece by piece: between so many boards there is no room for a long text.
    json.dump(message, sys.stdout)
    print()


def main():
    global start_s
    config = json.loads(sys.stdin.readline())
    start_s = config["start"]
    for sha256, path in config["apps"].items():
        _app_files[sha256] = open(path, "rb")
    packages = config["package"]
    _exchange_modules(config)
    # What the package writes, it writes into a directory of this process.
    vfs.umount("/")
    vfs.mount(vfs.VfsPosix(config["root"]), "/")
    vfs.mount(vfs.VfsPosix(packages), "/packages")
    with open("/boot.py", "w") as file:  # as after the first release: VfsPosix renames nothing here
        file.write("import ota.boot; ota.boot.activate()")
    sys.path[:] = ["/packages", ".frozen"]
    _prepare_package()
    crowd = Crowd(config)
    _say({"boards": len(config["boards"])})
    while True:
        line = sys.stdin.readline()
        if not line:
            return
        crowd.run(json.loads(line)["until_ms"])


main()
