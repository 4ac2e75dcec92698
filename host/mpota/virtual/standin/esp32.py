# Stand-in for MicroPython's `esp32` module: Partition (ports/esp32/esp32_partition.c) and NVS
# (esp32_nvs.c), over the flash of a virtual board.

import errno
import gc
import struct

import link
from micropython import const
from uctypes import addressof

_NATIVE_BLOCK_SIZE = const(4096)

_ANY = const(0xFF)
_OTA_0 = const(0x10)
_OTA_MAX = const(0x20)

_ESP_ERR_INVALID_ARG = const(0x102)
_ESP_ERR_INVALID_SIZE = const(0x104)

_NAMES = {
    -1: "ESP_FAIL",
    0x102: "ESP_ERR_INVALID_ARG",
    0x103: "ESP_ERR_INVALID_STATE",
    0x104: "ESP_ERR_INVALID_SIZE",
    0x105: "ESP_ERR_NOT_FOUND",
    0x10D: "ESP_ERR_NOT_ALLOWED",
    0x1101: "ESP_ERR_NVS_NOT_INITIALIZED",
    0x1102: "ESP_ERR_NVS_NOT_FOUND",
    0x1105: "ESP_ERR_NVS_NOT_ENOUGH_SPACE",
    0x1106: "ESP_ERR_NVS_INVALID_NAME",
    0x1109: "ESP_ERR_NVS_KEY_TOO_LONG",
    0x110B: "ESP_ERR_NVS_INVALID_STATE",
    0x110C: "ESP_ERR_NVS_INVALID_LENGTH",
    0x110E: "ESP_ERR_NVS_VALUE_TOO_LONG",
    0x1503: "ESP_ERR_OTA_VALIDATE_FAILED",
    0x6001: "ESP_ERR_FLASH_OP_FAIL",
    0x6002: "ESP_ERR_FLASH_OP_TIMEOUT",
}

# What the app read from its partition table at boot: (type, subtype, offset, size, label,
# encrypted) tuples, and the one of them that runs. Set by boot_app.py.
_partitions = ()
_running = None
# Faults of reading, lists [label or None for all, esp_err_t, times or None], and what this chip
# makes of a write from address 0: board.py. Set by boot_app.py.
_read_faults = ()
_null_erase = "erases"


def _check_esp_err(code):
    # mphalport.c: check_esp_err_
    if code:
        raise OSError(-code, _NAMES.get(code, "UNKNOWN ERROR"))


def _find(kind, subtype, label):
    # esp_partition_find: a subtype without a type finds nothing.
    if kind == _ANY and subtype != _ANY:
        return []
    return [
        info
        for info in _partitions
        if (kind == _ANY or info[0] == kind)
        and (subtype == _ANY or info[1] == subtype)
        and (label is None or info[4] == label)
    ]


def _find_first(kind, subtype, label=None):
    found = _find(kind, subtype, label)
    return found[0] if found else None


class Partition:
    BOOT = const(0)
    RUNNING = const(1)
    TYPE_APP = const(0)
    TYPE_DATA = const(1)

    def __init__(self, id, block_size=_NATIVE_BLOCK_SIZE):
        if isinstance(id, int):
            if id == 0:
                offset = link.call(link.BOOT_PARTITION)
                info = None if offset < 0 else next(p for p in _partitions if p[2] == offset)
            elif id == 1:
                info = _running
            else:
                raise ValueError
        elif isinstance(id, str):
            info = _find_first(0, _ANY, id) or _find_first(1, _ANY, id)
        elif isinstance(id, tuple):  # an entry of _partitions, from find() and get_next_update()
            info = id
        else:
            raise TypeError("can't convert to str")
        if info is None:
            raise OSError(errno.ENOENT)
        self._info = info
        self._address = info[2]
        self._size = info[3]
        self._block_size = block_size
        self._cache = bytearray(_NATIVE_BLOCK_SIZE) if block_size < _NATIVE_BLOCK_SIZE else None
        self._erase_size = bytearray(4)
        self._whose = link.FILES if info[4] in ("vfs", "ffat") else link.OTHER

    def __repr__(self):
        return "<Partition type=%u, subtype=%u, address=%u, size=%u, label=%s, encrypted=%u>" % (
            self._info
        )

    @staticmethod
    def find(type=0, subtype=_ANY, label=None, block_size=_NATIVE_BLOCK_SIZE):
        return [Partition(info, block_size) for info in _find(type, subtype, label)]

    def info(self):
        return self._info

    def readblocks(self, block, buf, offset=0):
        # littlefs comes here thousands of times: in the end this is what a boot takes.
        offset += block * self._block_size
        size = len(buf)
        if not 0 <= offset <= self._size - size:
            self._check_range(offset, size)
        if _read_faults:
            self._meet_read_fault()
        link.read(self._address + offset, buf, size, self._whose)

    def writeblocks(self, block, buf, offset=None):
        start = block * self._block_size
        if offset is not None:  # an extended write: the caller has erased
            start += offset
        elif self._cache is None:
            if addressof(buf) == 0:
                self._erase_for_null(start, len(buf))
                return
            self._erase(start, len(buf))
        else:
            self._erase_around(start, len(buf))
        self._write(start, buf)

    def ioctl(self, cmd, arg):
        if 1 <= cmd <= 3:
            return 0
        if cmd == 4:
            return self._size // self._block_size
        if cmd == 5:
            return self._block_size
        if cmd == 6:
            if self._block_size != _NATIVE_BLOCK_SIZE:
                return -errno.EINVAL
            self._erase(arg * _NATIVE_BLOCK_SIZE, _NATIVE_BLOCK_SIZE)
            return 0
        return None

    def set_boot(self):
        _check_esp_err(link.call(link.SET_BOOT, self._address))

    def get_next_update(self):
        # esp_ota_get_next_update_partition: the slot behind this one, else the first.
        first = None
        is_next = False
        for subtype in range(_OTA_0, _OTA_MAX):
            info = _find_first(0, subtype)
            if info is None:
                continue
            if is_next:
                return Partition(info)
            first = first or info
            is_next = info[2] == self._address
        if first is None:
            raise OSError(errno.ENOENT)
        return Partition(first)

    @classmethod
    def mark_app_valid_cancel_rollback(cls):
        _check_esp_err(link.call(link.MARK_VALID))

    def _check_range(self, offset, size):
        # esp_partition_read, esp_partition_write, esp_partition_erase_range
        if not 0 <= offset <= self._size:
            _check_esp_err(_ESP_ERR_INVALID_ARG)
        if size > self._size - offset:
            _check_esp_err(_ESP_ERR_INVALID_SIZE)

    def _erase(self, offset, size):
        self._check_range(offset, size)
        if size % _NATIVE_BLOCK_SIZE:
            _check_esp_err(_ESP_ERR_INVALID_SIZE)
        if offset % _NATIVE_BLOCK_SIZE:
            _check_esp_err(_ESP_ERR_INVALID_ARG)
        struct.pack_into("<I", self._erase_size, 0, size)
        _check_esp_err(link.call(link.ERASE, self._address + offset, self._erase_size))

    def _erase_for_null(self, offset, size):
        # esp_partition_erase_range erases, then esp_flash_write refuses a source at address 0. How
        # chips behave that have another driver is the board's choice: board.py, NullErase.
        how = "crashes" if self._info[5] else _null_erase
        if how != "ignored":
            self._erase(offset, _NATIVE_BLOCK_SIZE if how == "partial" else size)
        if how == "crashes":
            print("Guru Meditation Error: Core  0 panic'ed (LoadProhibited)")
            print("Rebooting...")
            link.call(link.RESET, 2)
        elif how == "written":
            zeros = bytes(256)
            for at in range(offset, offset + size, len(zeros)):
                self._write(at, zeros)
        elif how != "accepted":
            _check_esp_err(_ESP_ERR_INVALID_ARG)

    def _meet_read_fault(self):
        for fault in _read_faults:
            label, error, times = fault
            if label in (None, self._info[4]) and times != 0:
                if times:
                    fault[2] -= 1
                _check_esp_err(error)

    def _write(self, offset, buf):
        self._check_range(offset, len(buf))
        if addressof(buf) == 0:  # esp_flash_write
            _check_esp_err(_ESP_ERR_INVALID_ARG)
        _check_esp_err(link.call(link.WRITE, self._address + offset, buf))

    def _erase_around(self, start, size):
        # Blocks smaller than a sector: what surrounds them in their sectors is written back.
        sector = start // _NATIVE_BLOCK_SIZE * _NATIVE_BLOCK_SIZE
        before = start - sector
        end = start + size
        while sector < end:
            behind = sector + _NATIVE_BLOCK_SIZE - end
            if before or behind > 0:
                self._check_range(sector, _NATIVE_BLOCK_SIZE)
                link.read(self._address + sector, self._cache, _NATIVE_BLOCK_SIZE, self._whose)
            self._erase(sector, _NATIVE_BLOCK_SIZE)
            if before:
                self._write(sector, memoryview(self._cache)[:before])
            if behind > 0:
                self._write(end, memoryview(self._cache)[-behind:])
            before = 0
            sector += _NATIVE_BLOCK_SIZE


class NVS:
    def __init__(self, namespace):
        if not 0 < len(namespace) < 16:
            _check_esp_err(0x1106)
        self._namespace = namespace.encode() + b"\0"
        _check_esp_err(link.call(link.NVS_OPEN, 0, namespace.encode()))

    def __repr__(self):
        return "<NVS namespace>"

    def set_i32(self, key, value):
        self._set(ord("i"), key, struct.pack("<i", value))

    def get_i32(self, key):
        return struct.unpack("<i", self._get(ord("i"), key))[0]

    def set_blob(self, key, value):
        self._set(ord("b"), key, bytes(value))

    def get_blob(self, key, buf):
        value = self._get(ord("b"), key)
        if len(value) > len(buf):
            _check_esp_err(0x110C)
        buf[: len(value)] = value
        return len(value)

    def erase_key(self, key):
        _check_esp_err(link.call(link.NVS_ERASE, 0, self._namespace + self._key(key)))

    def commit(self):
        _check_esp_err(link.call(link.NVS_COMMIT))

    def _key(self, key):
        if not key:
            _check_esp_err(0x1106)
        if len(key) > 15:
            _check_esp_err(0x1109)
        return key.encode()

    def _set(self, kind, key, value):
        payload = self._namespace + self._key(key) + b"\0" + value
        _check_esp_err(link.call(link.NVS_SET, kind, payload))

    def _get(self, kind, key):
        result, value = link.fetch(link.NVS_GET, kind, self._namespace + self._key(key))
        _check_esp_err(result)
        return value


HEAP_DATA = const(4)
HEAP_EXEC = const(1)
WAKEUP_ALL_LOW = False
WAKEUP_ANY_HIGH = True


# MicroPython's heap starts with 64 KiB, then grows out of ESP-IDF's: main.c, gc_get_max_new_split.
# With PSRAM it lies there.
_FIRST_HEAP_SIZE = const(65536)
_idle_alloc = None  # what is allocated when boot.py starts; None: the heap lies in PSRAM
_least_free = 110000


def idf_heap_info(capabilities):
    # (size, free, largest free block, least free so far) of each region: one with as much free
    # outside MicroPython's heap as a board without PSRAM has left, and the PSRAM.
    global _least_free
    free = 110000
    if _idle_alloc is not None:
        free -= min(free, max(0, gc.mem_alloc() - _idle_alloc - _FIRST_HEAP_SIZE))
    _least_free = min(_least_free, free)
    regions = [(163840, free, min(69632, free), min(102400, _least_free))]
    if _idle_alloc is None:
        free = gc.mem_free()
        regions.append((free + gc.mem_alloc(), free, free, free))
    return regions


def mcu_temperature():
    return 40
