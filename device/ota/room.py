"""Whether there is room for a release, once all else speaks for it: see policy.py."""

from esp32 import Partition

from . import boot, files, otadata
from .confirm import check_selected
from .errors import ReleaseError

# Data partitions that hold more than content: otadata, phy_init, nvs, nvs_keys, efuse.
_RESERVED_SUBTYPES = (0x00, 0x01, 0x02, 0x04, 0x05)


def check_room(payloads, force):
    """Raises OTAError for what does not fit, before anything is erased.

    What a release takes of the file system is prepared then.
    """
    if all(payload.kind != "app" for payload in payloads):
        check_selected()
    files.check_space(0)
    gain = 0  # of the file system, by then
    for payload in payloads:
        if payload.kind == "app":
            part = otadata.find_next_slot()
            _check_size(payload.size, part, "app")
            gain = (boot.read_record(part) or {"now": {}})["now"].get("disk", 0)
        elif payload.kind == "files":
            files.check_space(payload.disk, gain)
            if not force:
                files.check_failed(payload.sha256)
        elif payload.kind == "certs":
            files.check_space(payload.size, gain)
        else:
            _check_size(payload.size, _find_data(payload.partition), "data")
    files.prepare()


def _check_size(size, part, what):
    _, _, _, room, name, _ = part.info()
    if size > room:
        raise ReleaseError("too-long", "the %s is %d bytes, %s holds %d" % (what, size, name, room))


def _find_data(label):
    """The data partition that a payload may be written to. Raises ReleaseError if there is none."""
    found = Partition.find(Partition.TYPE_DATA, label=label)
    if not found:
        raise ReleaseError("no-partition", "this board has no data partition '%s'" % label)
    from flashbdev import bdev

    offset = found[0].info()[2]
    if found[0].info()[1] in _RESERVED_SUBTYPES or (bdev and bdev.info()[2] == offset):
        raise ReleaseError("no-partition", "partition '%s' is in use by the system" % label)
    return found[0]
