"""Directory trees that belong to an app: staged beside the one in use, switched with the app.

In /.ota: a record for each app partition (boot.py), named by its offset, and in trees/ a directory
for each tree. A tree is complete before a record names it; a record is exchanged by one rename,
which littlefs does as a whole. With a new app, the record for the slot is written before
set_boot(): otadata alone switches both. Files alone are switched by the record of the app that
runs.
"""

import os
from hashlib import sha256

from esp32 import Partition
from micropython import const

from . import boot
from .confirm import sweep
from .errors import ReleaseError
from .tar import TarReader

_MAX_DEPTH = const(16)
_RESERVE = const(24576)  # of the file system: /.ota, its records, and what littlefs needs to write
_BOOT_LINE = "import ota.boot; ota.boot.activate()"


class TreeWriter:
    """A stage that unpacks a `files` payload. Raises ReleaseError.

    ``name`` is that of the directory in boot.TREES; until `close` it ends in ".part". ``staged``
    names what the release has brought already.
    """

    def __init__(self, sha256, disk, staged=()):
        prepare()
        sweep(staged)
        check_space(disk)
        self.name = _new_name(sha256[:12])
        self._path = boot.TREES + self.name + ".part"
        try:
            os.mkdir(self._path)
        except OSError as error:
            raise disk_error(error)
        self._tar = TarReader(self._open_member, "the files payload")
        self._count = 0

    def write(self, buf):
        try:
            self._tar.write(buf)
        except OSError as error:
            raise disk_error(error)

    def close(self):
        self._tar.finish()
        if not self._count:
            raise ReleaseError("tar", "the files payload is empty")
        try:
            os.rename(self._path, boot.TREES + self.name)
        except OSError as error:
            raise disk_error(error)

    def _open_member(self, name, size, is_directory):
        self._count += 1
        check_path(name)
        path = self._path + "/" + name
        if _exists(path):
            raise ReleaseError("path", "path '%s' is there twice" % name)
        if not _is_directory(path.rpartition("/")[0]):
            raise ReleaseError("path", "path '%s' has no directory" % name)
        if is_directory:
            os.mkdir(path)
            return None
        return _File(path)


class _File:
    """A file that is compared, when it is closed, with what was written."""

    def __init__(self, path):
        self._path = path
        self._file = open(path, "wb")
        self._sha = sha256()

    def write(self, buf):
        self._sha.update(buf)
        self._file.write(buf)

    def close(self):
        self._file.close()
        sha = sha256()
        buf = bytearray(512)
        view = memoryview(buf)
        with open(self._path, "rb") as file:
            while True:
                count = file.readinto(buf)
                if not count:
                    break
                sha.update(view[:count])
        if sha.digest() != self._sha.digest():
            raise ReleaseError("digest", "%s reads back other than written" % self._path)


class CertsWriter:
    """A stage that stores a `certs` payload: CA certificates in one file of boot.HOME."""

    def __init__(self, sha256, size):
        prepare()
        check_space(size)
        self.name = sha256[:12] + ".ca"
        self._path = boot.HOME + "/" + self.name
        self._is_first = True
        try:
            self._file = open(self._path + ".new", "wb")
        except OSError as error:
            raise disk_error(error)

    def write(self, buf):
        if self._is_first and bytes(buf[:1]) not in (b"-", b"0"):
            raise ReleaseError("certs", "the certs payload is neither PEM nor DER")
        self._is_first = False
        try:
            self._file.write(buf)
        except OSError as error:
            raise disk_error(error)

    def close(self):
        try:
            self._file.close()
            os.rename(self._path + ".new", self._path)
        except OSError as error:
            raise disk_error(error)


def check_path(name):
    """Raises ReleaseError for a path that is absolute, climbs out, or is nested too deeply."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in name:
        raise ReleaseError("path", "path '%s' leaves the tree" % name)
    if len(parts) > _MAX_DEPTH:
        raise ReleaseError("path", "path '%s' is deeper than %d" % (name, _MAX_DEPTH))
    if any(c < " " for c in name):
        raise ReleaseError("path", "path %r has a control character" % name)


def free_size():
    """Bytes that a release may still take of the file system; negative without room for any."""
    stat = os.statvfs("/")
    return stat[1] * stat[3] - _RESERVE


def check_space(size, gain=0):
    """Raises ReleaseError unless ``size`` bytes fit; ``gain`` bytes will be free by then."""
    free = free_size() + gain
    if size > free:
        raise ReleaseError(
            "disk-full",
            "the files take %d bytes, the file system has %d left" % (size, max(free, 0)),
        )


def disk_error(error):
    """The OTAError for an OSError of the file system."""
    if error.errno == 28:  # ENOSPC
        return ReleaseError("disk-full", "the file system is full")
    return ReleaseError("disk", "the file system failed: %s" % error)


def prepare():
    """Make the directories, and see that boot.py activates trees."""
    try:
        for path in (boot.HOME, boot.TREES[:-1]):
            if not _exists(path):
                os.mkdir(path)
        install_boot()
    except OSError as error:
        raise disk_error(error)


def install_boot():
    """Put the line that activates trees first in /boot.py, if it is not in it; True if it did."""
    text = ""
    if _exists("/boot.py"):
        with open("/boot.py") as file:
            text = file.read()
    if "ota.boot" in text:
        return False
    with open("/boot.py.new", "w") as file:
        file.write(_BOOT_LINE + "\n" + text)
    os.rename("/boot.py.new", "/boot.py")
    return True


# --- what belongs to which app


def running():
    """What belongs to the app that runs: a dict with name, version, tree, ... or an empty one."""
    record = boot.read_record(Partition(Partition.RUNNING)) or {"now": {}}
    return record["next"] if record.get("tried") else record["now"]


def certs():
    """The path of the CA certificates that came with the release that runs, or None."""
    name = running().get("certs")
    return boot.HOME + "/" + name if name else None


def attach(part, release):
    """Tie ``release`` (a dict) to the image in a partition that is about to be switched to.

    Files that wait for their trial are given up: a rollback leads to what runs now.
    """
    _write_record(part, {"app": boot.app_id(part), "now": release})
    former = Partition(Partition.RUNNING)
    record = boot.read_record(former)
    if record and "next" in record and "tried" not in record:
        del record["next"]
        _write_record(former, record)


def carry_over(part):
    """An app without files goes on with those that are in use."""
    release = running() if boot.has_home() else None
    if release:
        kept = {key: release[key] for key in ("tree", "certs") if key in release}
        attach(part, kept)


def try_next(release):
    """Let the next boot try ``release`` with the app that runs."""
    part = Partition(Partition.RUNNING)
    record = boot.read_record(part) or {"app": boot.app_id(part), "now": {}}
    record["next"] = release
    _write_record(part, record)


def settle(release):
    """Tie ``release`` to the app that runs at once: it brought nothing that could be on trial."""
    part = Partition(Partition.RUNNING)
    record = boot.read_record(part) or {"app": boot.app_id(part), "now": {}}
    record["now"].update(release)
    _write_record(part, record)


def has_failed(sha256):
    """Whether these files were tried with the app that runs and not confirmed."""
    record = boot.read_record(Partition(Partition.RUNNING)) or {}
    return record.get("failed") == sha256


def _write_record(part, record):
    try:
        boot.write_record(part, record)
    except OSError as error:
        raise disk_error(error)


def _new_name(stem):
    """A tree is never written over, though it be the same: what runs may have changed it."""
    name = stem
    number = 0
    while _exists(boot.TREES + name) or _exists(boot.TREES + name + ".part"):
        number += 1
        name = "%s-%d" % (stem, number)
    return name


def _exists(path):
    try:
        os.stat(path)
        return True
    except OSError:
        return False


def _is_directory(path):
    return _exists(path) and os.stat(path)[0] & 0x4000
