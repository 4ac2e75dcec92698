"""Whether the app that runs is confirmed, and what follows when it is: files, counter, keys.

`confirm` is called by ota.rollback.cancel(), on boards that ever took a release, until it has been
complete once for the app and files that run (boot.py: settle). All of it may be cut short at any
point and is taken up again by the next call.
"""

import os
import sys
from hashlib import sha256

from esp32 import Partition
from micropython import const

from . import base, boot, otadata
from .base import ReleaseError, unload
from .otadata import HOME


def confirm():
    """Keep the files on trial, raise the counter, change keys, remove what is of no more use."""
    part = Partition(Partition.RUNNING)
    if otadata.state(part) == otadata.PENDING_VERIFY:
        return
    is_done = True
    record = boot.read_record(part)
    if record:
        if record.get("tried"):
            record = {"app": record["app"], "now": record["next"]}
            boot.write_record(part, record)
        if "sha256" in record["now"] and base.has_note("failed"):
            from .recovery import forgive

            forgive(bytes.fromhex(record["now"]["sha256"]))
        is_done = apply_trust(record["now"])
        path = base.package_path()
        if path[:5] in ("/ota", "/.ota"):  # the package came with a release
            finish_self_update(path)
        if base.owner is not None:  # an update has staged files that no record names yet: keep them
            return
        sweep()
    if is_done and not (record and "next" in record):  # those are to be confirmed yet
        try:
            boot.settle(part)
        except OSError:  # a full file system: then all this is done at the next boot again
            pass


def apply_trust(release):
    """Bring counter, keys, name and version to what a confirmed release says, in one write.

    Returns whether that is so now. Raises ReleaseError if NVS does not take it, where keys are
    installed: without keys a board does without NVS as well.

    Keys change only together with a counter that is above the highest so far: else a release that
    was rolled back, or one that is confirmed once more, could bring back what was retired since.
    """
    from . import keys

    trust = keys.load()
    changes = release.get("counter", 0) > trust.counter
    if changes:
        trust.counter = release["counter"]
        if "add" in release:
            try:
                trust.change(release["add"], release["retire"])
            except (ReleaseError, LookupError, TypeError):
                pass  # it was possible when the release came: the keys were changed by hand since
    name = release.get("name")  # of a release with content
    version = release.get("version", "")
    if name and (name, version) != (trust.name, trust.version):
        trust.name, trust.version = name, version
        changes = True
    if changes:
        try:
            trust.save()
        except ReleaseError:
            if trust.trusted:
                raise
            return False
    return True


def check_selected():
    """Raises StateError while another app waits for its first boot.

    What a release without an app brings belongs to the app that runs: the other would not have it.
    """
    try:
        boots = Partition(Partition.BOOT).info()
    except OSError:  # no otadata: the board has a single app
        return
    if boots[2] != Partition(Partition.RUNNING).info()[2]:
        from .base import StateError

        raise StateError(
            "waiting",
            "the app in %s waits for the restart, and the release has none: restart first, or call "
            "ota.rollback.cancel_force() to keep the app that runs" % boots[4],
        )


def give_up_waiting():
    """Drop files on trial, since another app boots next: a rollback leads to what runs now."""
    part = Partition(Partition.RUNNING)
    record = boot.read_record(part)
    if record and "next" in record and "tried" not in record:
        del record["next"]
        boot.write_record(part, record)


def give_up_files():
    """Give up the files on trial: the next boot takes the former ones."""
    part = Partition(Partition.RUNNING)
    record = boot.read_record(part)
    boot.give_up(record, False)
    try:
        boot.write_record(part, record)
    except OSError as error:
        from .files import disk_error

        raise disk_error(error)


def sweep(staged=()):
    """Remove trees, certificates and records that belong to no image any more, whole or partial."""
    keep = set(staged)
    keep.update(("trees", "settled"))
    for part in Partition.find(Partition.TYPE_APP):
        record = boot.read_record(part)
        if record:
            keep.add(boot.record_path(part).rpartition("/")[2])
            for release in (record["now"], record.get("next", {})):
                keep.update((release.get("tree"), release.get("certs")))
    for folder in (boot.HOME + "/", boot.TREES):
        try:
            names = os.listdir(folder[:-1])
        except OSError:  # the power was cut between the two mkdir()
            continue
        for name in names:
            if name not in keep:
                _remove(folder + name)


def _remove(path):
    if os.stat(path)[0] & 0x4000:
        for name in os.listdir(path):
            _remove(path + "/" + name)
        os.rmdir(path)
    else:
        os.remove(path)


# --- whether there is room

# Data partitions that hold more than content: otadata, phy_init, nvs, nvs_keys, efuse.
_RESERVED_SUBTYPES = (0x00, 0x01, 0x02, 0x04, 0x05)


def check_room(payloads, force):
    """Raises OTAError for what does not fit, before anything is erased.

    What a release takes of the file system is prepared then.
    """
    from . import files

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


# --- puts the package that came with a release in the place of /lib/ota: mpota bundle --with-ota
#
# Every step is one rename, and whatever a power cut leaves, `import ota` finds a whole package:
# that in / comes before that in /lib. `confirm` calls this until it is done.

MARK = "/moving"  # a file in the package that takes the place of another


def finish_self_update(path):
    """``path``: where the running package stands, "/ota" or in a confirmed tree."""
    try:
        os.stat(path + MARK)
        if path != "/ota":
            os.rename(path, "/ota")
            _moved("/ota")
        try:
            os.stat("/lib/ota")
        except OSError:
            pass
        else:
            _set_aside("/lib/ota")
        os.rename("/ota", "/lib/ota")
        _moved("/lib/ota")
        os.remove("/lib/ota" + MARK)
    except OSError:  # it is somebody else's, or the next boot tries again
        pass


def _set_aside(path):
    """Move the former package to where confirm.sweep() removes it."""
    number = 0
    while True:
        try:
            os.rename(path, "%s/ota.old%d" % (HOME, number))
            return
        except OSError:
            number += 1  # the name is taken by what a power cut left
            if number > 3:
                raise


def _moved(path):
    package = sys.modules[__name__.rpartition(".")[0]]
    if package.__path__ == package._home:  # else its modules are in packs
        package.__path__ = path
    package._home = path


# --- what runs, for who is about to send something else

_SEEN = const(0x87)  # docs/PROTOCOL.md
_CONFIRMED = const(1)
_MORE = const(2)
_SETTLED = const(4)
_ID_SIZE = const(8)
_MAX_IDS = const(19)  # in a message
_MAX_READ = const(32768)  # bytes of files that are read for one
_PIECE = const(512)


def look(receiver, session, data):
    """Answer a LOOK: what runs, and which files it has. ``receiver``: see push_receiver.py."""
    unload("confirm")  # it is needed for this alone
    if not receiver._is_proven(session, b"look", data[:3], data[3:]):
        return
    part = Partition(Partition.RUNNING)
    is_trial = otadata.state(part) == otadata.PENDING_VERIFY or boot.is_on_trial()
    files = boot.running().get("sha256", "00" * 32)
    message = (otadata.app_id(part) or bytes(32)) + bytes.fromhex(files)
    flags = (0 if is_trial else _CONFIRMED) | (0 if receiver.is_done else _SETTLED)
    have = done = 0
    for one in ids(data[1] | data[2] << 8):
        if one is None:
            done += _PIECE
            continue
        if have == _MAX_IDS or (have and done > _MAX_READ):
            flags |= _MORE
            break
        message += one
        have += 1
    message = bytes((_SEEN, flags)) + message
    session.link.send(message + receiver._prove(session, b"seen", message))


def tree():
    """The path of the tree in use, None if there is none."""
    name = boot.running().get("tree")
    return boot.TREES + name if name else None


def ids(start=0):
    """A generator: 8 bytes for each file of the tree in use, from the ``start``-th on.

    They are the first of the SHA-256 of its path, a zero, and its content. None comes for each
    512 bytes that were read for the next.
    """
    top = tree()
    if top:
        yield from _ids(top, "", [start])


def _ids(folder, stem, skip):
    for name, kind, *_ in os.ilistdir(folder):
        path = folder + "/" + name
        if kind == 0x4000:
            yield from _ids(path, stem + name + "/", skip)
        elif skip[0]:
            skip[0] -= 1
        else:
            sha = sha256((stem + name).encode() + b"\0")
            buf = memoryview(bytearray(_PIECE))
            with open(path, "rb") as file:
                count = file.readinto(buf)
                while count:
                    sha.update(buf[:count])
                    yield None
                    count = file.readinto(buf)
            yield sha.digest()[:_ID_SIZE]


# --- what a tar file has beside its files, for chain.py

_BLOCK = const(512)
# mode, uid, gid, size, mtime, checksum, type
_HEADER = b"%07o\x000000000\x000000000\x00%011o\x0000000000000\x00        %d"


def zeros(buf, count):
    out = buf[:count]
    out[:] = bytes(count)
    return out


def header(buf, name, size, is_directory):
    """Fill ``buf`` with a tar header, as the desk's ``mpota/formats/thin.py`` makes it."""
    if is_directory:
        name += b"/"
    out = zeros(buf, _BLOCK)
    out[: len(name)] = name
    rest = _HEADER % (0o755 if is_directory else 0o644, size, 5 if is_directory else 0)
    out[100:157] = rest
    out[257:263] = b"ustar\0"
    out[263:265] = b"00"
    out[148:155] = b"%06o\0" % sum(out)
    return out
