"""The state of a board: what runs and boots next, what the slots hold, the table and otadata."""

from esp32 import Partition

from . import __version__, base, otadata
from .base import OTAError, SlotError
from .console import ota_reboot  # noqa: F401 - where users look for it
from .slot_app import is_intact, read_app

_STATES = ("NEW", "PENDING_VERIFY", "VALID", "INVALID", "ABORTED")
_TYPES = ("app", "data")
_TEXTS = (("version", 16), ("project", 48), ("idf", 112))  # 32 bytes in esp_app_desc_t
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
    if _TYPES[kind] == "app":
        if subtype == 0:
            return "factory"
        if 0x10 <= subtype < 0x20:
            return "ota_%d" % (subtype - 0x10)
        return "test" if subtype == 0x20 else "0x%02x" % subtype
    return _DATA_SUBTYPES.get(subtype, "0x%02x" % subtype)


def ready():
    """Whether this board can be updated: it has otadata and an OTA slot that does not run."""
    return _next() is not None


def _next():
    try:
        return otadata.find_next_slot().info()[4]
    except SlotError:
        return None


def partition_table():
    """All partitions by address, as esp32.Partition.info() tells of them."""
    found = Partition.find() + Partition.find(Partition.TYPE_DATA)  # apps, data
    return sorted([p.info() for p in found], key=lambda info: info[2])


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
        raise SlotError("flash", "the flash cannot be read: %s" % error)


def _info(verify):
    from .begin import erases_blocks
    from .image import Board
    from .recovery import digests

    running = Partition(Partition.RUNNING)
    board = Board(running)
    apps = sorted(Partition.find(), key=lambda p: p.info()[2])
    return {
        "ota": __version__,
        "parts": parts(),
        "release": _release(),
        "running": running.info()[4],
        "boot": _boot(),
        "next": _next(),
        "slots": [_slot(partition, board, verify) for partition in apps],
        "table": [
            {
                "label": label,
                "type": _TYPES[kind],
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


def _release():
    if not otadata.has_home():
        return {}
    from .boot import running

    found = running()
    return {key: found[key] for key in ("name", "version") if key in found}


def _boot():
    try:
        return Partition(Partition.BOOT).info()[4] if otadata.find_otadata() else None
    except OSError:
        return None


def _slot(partition, board, verify):
    from .local import find_version

    _, _, offset, size, label, _ = partition.info()
    state = state_name(otadata.state(partition))
    slot = {"label": label, "offset": offset, "size": size, "state": state, "valid": False}
    try:
        image = read_app(partition, board)
    except base.ImageError as error:
        slot["problem"] = str(error)
        return slot
    slot["image_size"] = image.size
    for key, at in _TEXTS:
        text = bytes(image.desc[at : at + 32]).split(b"\0", 1)[0]
        slot[key] = "".join([chr(byte) if 32 <= byte < 127 else "?" for byte in text])
    slot["micropython"] = find_version(partition, image.size)
    slot["digest"] = image.digest.hex()
    slot["valid"] = not verify or is_intact(partition, image)
    if not slot["valid"]:
        slot["problem"] = "its SHA-256 does not match"
    return slot


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
        keys = ("label", "type", "subtype", "offset", "size", "size")
        print("  %-10s %-8s %-8s %#10x %#10x %10d" % tuple(entry[key] for key in keys))
    for record in data["otadata"]:
        print("OTA record: state=%(state)s, seq=%(seq)s, valid=%(valid)s" % record)
    for digest in data["failed"]:
        print("Failed version: SHA-256 %.16s..." % digest)
    if data["block_erase"] is not None:
        print("Flash is erased by %d KiB." % (64 if data["block_erase"] else 4))
    release = data["release"].values()
    print("Release %s, ota %s." % (" ".join(release) or "-", data["ota"]))
    if data["boot"]:
        print("Next boot is '%s'." % data["boot"])


def _describe(slot):
    if not slot["valid"]:
        return "no bootable image: " + slot["problem"]
    return "MicroPython %(micropython)s, ESP-IDF %(idf)s, SHA-256 %(digest).16s..." % slot


# --- the parts of this package

# Part, its modules: the first of them is what the part is used by. All else is the core, which they
# all need. mpota and build_mpy.py read the table from here; a test holds it against the imports.
PARTS = (
    ("release", "release boot chain confirm files keys manifest policy tar"),
    ("encoded", "frames delta"),
    ("ble", "ble push_receiver push_intake"),
    ("listen", "listen tcp push_receiver push_intake"),
    ("web", "web web_more"),
    (
        "channel",
        "channel channel_start channel_more channel_file follow follow_ask follow_more trial twin",
    ),
    (
        "ddi",
        "ddi ddi_start ddi_ask ddi_more ddi_offer ddi_take "
        "follow follow_ask follow_more trial twin",
    ),
    ("mqtt", "mqtt mqtt_start mqtt_hello mqtt_facts mqtt_state mqtt_manifest"),
)


def parts():
    """The names of the parts that are installed, as `mpota install` calls them.

    None where the package is part of the firmware.
    """
    found = base.installed()
    if found is None:
        return None
    return ["core"] + [
        part
        for part, modules in PARTS
        if part + ".pack" in found or found.issuperset(modules.split())
    ]


def missing(error):
    """What an ImportError means: OTAError ("part") for a module that belongs to a part.

    Other errors come back as they are.
    """
    name = str(error).rpartition(".")[2].rstrip("'")
    for part, modules in PARTS:
        if name in modules.split() and "'" + __name__[:-6] in str(error):  # "ota."
            text = "the part '%s' is not installed: mpota install PORT --with %s"
            return OTAError("part", text % (part, part))
    return error
