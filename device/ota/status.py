"""What runs, what boots next, what the slots hold, the table and otadata."""

from esp32 import Partition
from micropython import const

from . import __version__, otadata
from .reboot import ota_reboot  # noqa: F401 - its place in micropython-esp32-ota

_SEARCH_SIZE = const(0x80000)  # MicroPython's version stands in the first segment
_BUF_SIZE = const(4096)
_OVERLAP = const(64)

_STATES = ("NEW", "PENDING_VERIFY", "VALID", "INVALID", "ABORTED")
_TYPES = ("app", "data")
_DATA_SUBTYPES = {
    0: "ota", 1: "phy", 2: "nvs", 3: "coredump", 4: "nvs_keys", 5: "efuse", 6: "undefined",
    0x80: "esphttpd", 0x81: "fat", 0x82: "spiffs", 0x83: "littlefs",
}  # fmt: skip


def state_name(state):
    """ESP-IDF's name of an ota_state; None for None."""
    if state is None:
        return None
    return _STATES[state] if state < len(_STATES) else "UNDEFINED"


def subtype_name(kind, subtype):
    """The name of a partition subtype as partition tables in CSV have it."""
    if kind == Partition.TYPE_APP:
        if subtype == 0:
            return "factory"
        if 0x10 <= subtype < 0x20:
            return "ota_%d" % (subtype - 0x10)
        return "test" if subtype == 0x20 else "0x%02x" % subtype
    return _DATA_SUBTYPES.get(subtype, "0x%02x" % subtype)


def ready():
    """Whether this board can be updated: it has otadata and an OTA slot that does not run."""
    from .errors import SlotError
    from .otadata import find_next_slot

    try:
        find_next_slot()
    except SlotError:
        return False
    return True


def partition_table():
    """All partitions by address, as esp32.Partition.info() tells of them."""
    found = [p.info() for p in Partition.find(Partition.TYPE_APP)]
    found += [p.info() for p in Partition.find(Partition.TYPE_DATA)]
    return sorted(found, key=lambda info: info[2])


def info(verify=True):
    """All of it as a dict.

    ``ota``: the version of this package; ``parts``: which of them are installed. ``release``: name
    and version of the release that runs, {} if there is none. ``running``, ``boot``, ``next``:
    labels (boot and next None without OTA). ``slots``: a dict for each app partition with label,
    offset, size, ``state`` (ESP-IDF's name, None if otadata has no record of it), ``image_size``,
    ``micropython``, ``version``, ``project``, ``idf``, ``digest`` (hex) and ``valid``: whether
    there is an image that would boot and matches its digest; with ``verify`` off only its headers
    are read for it. ``problem`` says why an image is not valid. ``table``: the partitions;
    ``otadata``: both records. ``failed``: digests (hex) of the versions that are not installed
    again without force. ``block_erase``: whether updates erase 64 KiB at once, None where that is
    not known yet. Raises SlotError if the flash cannot be read.
    """
    try:
        return _info(verify)
    except OSError as error:
        from .errors import SlotError

        raise SlotError("flash", "the flash cannot be read: %s" % error)


def _info(verify):
    from .failed_version import digests
    from .image import Board
    from .slot import erases_blocks

    running = Partition(Partition.RUNNING)
    board = Board(running)
    apps = sorted(Partition.find(Partition.TYPE_APP), key=lambda p: p.info()[2])
    return {
        "ota": __version__,
        "parts": _parts(),
        "release": _release(),
        "running": running.info()[4],
        "boot": _label(lambda: Partition(Partition.BOOT)) if otadata.find_otadata() else None,
        "next": _label(running.get_next_update) if ready() else None,
        "slots": [_slot(partition, board, verify) for partition in apps],
        "table": [
            {
                "label": label,
                "type": _TYPES[kind] if kind < 2 else "0x%02x" % kind,
                "subtype": subtype_name(kind, subtype),
                "offset": offset,
                "size": size,
                "encrypted": encrypted,
            }
            for kind, subtype, offset, size, label, encrypted in partition_table()
        ],
        "otadata": [
            {
                "seq": record.seq,
                "state": state_name(record.state),
                "crc_ok": record.is_crc_ok,
                "valid": record.is_valid,
                "slot": None if record.slot is None else "ota_%d" % record.slot,
            }
            for record in otadata.records()
        ],
        "failed": [digest.hex() for digest in digests()],
        "block_erase": erases_blocks(),
    }


def _parts():
    from .package import parts

    return parts()


def _release():
    if not otadata.has_home():
        return {}
    from .boot import running

    found = running()
    return {key: found[key] for key in ("name", "version") if key in found}


def _label(find):
    try:
        return find().info()[4]
    except OSError:
        return None


def _slot(partition, board, verify):
    from .errors import ImageError
    from .installed import is_intact, read_app

    _, _, offset, size, label, _ = partition.info()
    slot = {"label": label, "offset": offset, "size": size}
    slot["state"] = state_name(otadata.state(partition))
    slot["valid"] = False
    try:
        image = read_app(partition, board)
    except ImageError as error:
        slot["problem"] = str(error)
        return slot
    slot["image_size"] = image.size
    slot["version"] = _text(image.desc, 16)
    slot["project"] = _text(image.desc, 48)
    slot["idf"] = _text(image.desc, 112)
    slot["micropython"] = find_version(partition, image.size)
    slot["digest"] = image.digest.hex()
    slot["valid"] = not verify or is_intact(partition, image)
    if not slot["valid"]:
        slot["problem"] = "its SHA-256 does not match"
    return slot


def _text(desc, offset):
    """A string of up to 32 bytes in esp_app_desc_t."""
    text = bytes(desc[offset : offset + 32]).split(b"\0", 1)[0]
    return "".join([chr(byte) if 32 <= byte < 127 else "?" for byte in text])


def find_version(partition, size):
    """MicroPython's version text in an app ("v1.26.1 on 2025-09-11"), or None."""
    buf = bytearray(_BUF_SIZE + _OVERLAP)
    view = memoryview(buf)
    for at in range(0, min(size, _SEARCH_SIZE), _BUF_SIZE):
        view[:_OVERLAP] = view[_BUF_SIZE:]
        count = min(_BUF_SIZE, size - at)
        partition.readblocks(at // _BUF_SIZE, view[_OVERLAP : _OVERLAP + count], 0)
        found = buf.find(b"MicroPython v")
        while found >= 0:
            end = found
            while end < len(buf) and 32 <= buf[end] < 127:
                end += 1
            if end < len(buf) and b" on " in buf[found:end]:
                return str(buf[found + 12 : end], "ascii")
            found = buf.find(b"MicroPython v", found + 1)
    return None


def status():
    """Print what runs and boots next, the table, and otadata."""
    data = info(verify=False)
    from sys import version

    print(
        "Micropython %s has booted from partition '%s'." % (version.split(" ")[2], data["running"])
    )
    print("Will boot from partition '%s' on next reboot." % (data["boot"] or data["running"]))
    if data["next"]:
        print("The next OTA partition for update is '%s'." % data["next"])
    elif otadata.slots():
        print("No spare OTA partition is available for update.")
    else:
        print("There are no OTA partitions available.")
    from flashbdev import bdev

    if bdev:
        print("The / filesystem is mounted from partition '%s'." % bdev.info()[4])
    for slot in data["slots"]:
        print("Slot %-10s %-14s %s" % (slot["label"], slot["state"] or "-", _describe(slot)))
    print("Partition table:")
    print("# Name       Type     SubType      Offset       Size (bytes)")
    for entry in data["table"]:
        print(
            "  %-10s %-8s %-8s %10s %10s %10d"
            % (
                entry["label"],
                entry["type"],
                entry["subtype"],
                "0x%x" % entry["offset"],
                "0x%x" % entry["size"],
                entry["size"],
            )
        )
    for record in data["otadata"]:
        print(
            "OTA record: state=%s, seq=%s, valid=%s"
            % (record["state"], record["seq"], record["valid"])
        )
    for digest in data["failed"]:
        print("Failed version: SHA-256 %s..." % digest[:16])
    if data["block_erase"] is not None:
        print("Flash is erased by %d KiB." % (64 if data["block_erase"] else 4))
    release = data["release"].values()
    print("Release %s, ota %s." % (" ".join(release) or "-", data["ota"]))
    if data["boot"]:
        print("Next boot is '%s'." % data["boot"])


def _describe(slot):
    if not slot["valid"]:
        return "no bootable image: " + slot["problem"]
    return "MicroPython %s, ESP-IDF %s, SHA-256 %s..." % (
        slot["micropython"],
        slot["idf"],
        slot["digest"][:16],
    )
