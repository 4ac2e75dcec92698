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

from . import base, boot
from .base import ReleaseError
from .boot import exists, running
from .confirm import give_up_waiting, sweep
from .otadata import app_id
from .tar import TarReader

_MAX_DEPTH = const(16)
_RESERVE = const(24576)  # of the file system: /.ota, its records, and what littlefs needs to write
_BOOT_LINE = "import ota.boot; ota.boot.activate()"


class TreeWriter:
    """A stage (pump.py) that unpacks a `files` payload. Raises ReleaseError.

    ``name`` is that of the directory in boot.TREES; until `finish` it ends in ".part". ``staged``
    names what the release has brought already.
    """

    def __init__(self, sha256, disk, staged=()):
        prepare()
        try:
            sweep(staged)
            check_space(disk)
            self.name = _new_name(sha256[:12])
            self._path = boot.TREES + self.name + ".part"
            os.mkdir(self._path)
        except OSError as error:
            raise disk_error(error)
        self._tar = TarReader(self._open_member, "the files payload")
        self._count = 0
        self._file = None
        self.wanted = self._tar.wanted
        self.skip = self._tar.skip

    def write(self, view):
        try:
            self._tar.write(view)
        except OSError as error:
            raise disk_error(error)

    def work(self):
        try:
            return self._tar.work()
        except OSError as error:
            raise disk_error(error)

    def finish(self):
        self._tar.finish()
        if not self._count:
            raise ReleaseError("tar", "the files payload is empty")
        try:
            os.rename(self._path, boot.TREES + self.name)
        except OSError as error:
            raise disk_error(error)

    def abort(self):
        """Close what is open."""
        if self._file:
            self._file.abort()

    def _open_member(self, name, size, is_directory):
        self._count += 1
        check_path(name)
        path = self._path + "/" + name
        if exists(path):
            raise ReleaseError("path", "path '%s' is there twice" % name)
        if not _is_directory(path.rpartition("/")[0]):
            raise ReleaseError("path", "path '%s' has no directory" % name)
        if is_directory:
            os.mkdir(path)
            return None
        self._file = _File(path, size)
        return self._file


class _File:
    """A stage for a file, which is compared with what was written when it is whole."""

    def __init__(self, path, size):
        self._path = path
        self._left = size
        self._file = open(path, "wb")
        self._sha = sha256()
        self._check = None  # SHA-256 over the bytes read back
        self._buf = None

    def wanted(self):
        return self._left

    def write(self, view):
        self._sha.update(view)
        self._file.write(view)
        self._left -= len(view)

    def work(self):
        if self._left or not self._file:
            return False
        if self._check is None:
            self._file.close()
            self._file = open(self._path, "rb")
            self._check = sha256()
            self._buf = memoryview(bytearray(512))
            return True
        count = self._file.readinto(self._buf)
        if count:
            self._check.update(self._buf[:count])
        else:
            self.abort()
        return True

    def skip(self):
        return 0

    def abort(self):
        file, self._file = self._file, None
        if file:
            file.close()

    def finish(self):
        if self._check.digest() != self._sha.digest():
            raise ReleaseError("digest", "%s reads back other than written" % self._path)


class CertsWriter:
    """A stage that stores a `certs` payload: CA certificates in one file of boot.HOME."""

    def __init__(self, sha256, size):
        prepare()
        check_space(size)
        self.name = sha256[:12] + ".ca"
        self._path = boot.HOME + "/" + self.name
        self._is_first = True
        self._left = size
        try:
            self._file = open(self._path + ".new", "wb")
        except OSError as error:
            raise disk_error(error)

    def wanted(self):
        return self._left

    def write(self, view):
        if self._is_first and bytes(view[:1]) not in (b"-", b"0"):
            raise ReleaseError("certs", "the certs payload is neither PEM nor DER")
        self._is_first = False
        self._left -= len(view)
        try:
            self._file.write(view)
        except OSError as error:
            raise disk_error(error)

    def work(self):
        return False

    def skip(self):
        return 0

    def abort(self):
        self._file.close()

    def finish(self):
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
    try:
        stat = os.statvfs("/")
    except OSError as error:
        raise disk_error(error)
    if not stat[2]:  # nothing is mounted at the root
        raise ReleaseError("disk", "there is no file system at /")
    return stat[1] * stat[3] - _RESERVE


def check_space(size, gain=0):
    """Raises ReleaseError unless ``size`` bytes fit; ``gain`` bytes will be free by then."""
    free = free_size() + gain
    if size > free:
        raise ReleaseError(
            "disk-full",
            "the files take %d bytes, the file system has %d left beside the %d that are kept for "
            "records" % (size, max(free, 0), _RESERVE),
        )


def disk_error(error):
    """The OTAError for an OSError of the file system."""
    if error.errno == 28:  # ENOSPC
        return ReleaseError("disk-full", "the file system is full")
    return ReleaseError("disk", "the file system failed: %s" % error)


def prepare():
    """Make the directories, and see that boot.py activates trees. Raises ReleaseError.

    Something is written always: a file system that takes nothing is noticed here.
    """
    try:
        for path in (boot.HOME, boot.TREES[:-1]):
            if not exists(path):
                os.mkdir(path)
        boot.settle()
        install_boot()
    except OSError as error:
        raise disk_error(error)


def install_boot():
    """Put the line that activates trees first in /boot.py, if it is not in it; True if it did."""
    text = ""
    if exists("/boot.py"):
        with open("/boot.py") as file:
            text = file.read()
    if "ota.boot" in text:
        return False
    with open("/boot.py.new", "w") as file:
        file.write(_BOOT_LINE + "\n" + text)
    os.rename("/boot.py.new", "/boot.py")
    return True


# --- what belongs to which app


def certs():
    """The path of the CA certificates that came with the release that runs, or None."""
    name = running().get("certs")
    return boot.HOME + "/" + name if name else None


def attach(part, release, head):
    """Tie ``release`` (a dict) to the image in a partition that is about to be switched to.

    ``head``: its first 32 bytes, which the flash does not hold yet. Files that wait for their
    trial are given up: a rollback leads to what runs now.
    """
    if release:
        _write_record(part, {"app": _app_id(part, head), "now": release})
    try:
        give_up_waiting()
    except OSError as error:
        raise disk_error(error)


def carry_over(part, head):
    """Let an app that comes without files go on with those in use."""
    release = running()
    keys = ("tree", "disk", "certs", "name", "version")
    attach(part, {key: release[key] for key in keys if key in release}, head)


def try_next(release):
    """Let the next boot try ``release`` with the app that runs."""
    part = Partition(Partition.RUNNING)
    record = boot.read_record(part) or {"app": _app_id(part), "now": {}}
    record["next"] = release
    _write_record(part, record)


def settle(release):
    """Tie ``release`` to the app that runs at once: it brought nothing that could be on trial."""
    part = Partition(Partition.RUNNING)
    record = boot.read_record(part) or {"app": _app_id(part), "now": {}}
    record["now"].update(release)
    _write_record(part, record)


def check_failed(sha256):
    """Raises StateError if these files have failed on this board, as recovery.py has it."""
    last = (boot.read_record(Partition(Partition.RUNNING)) or {}).get("failed")
    if last or base.has_note("failed"):
        from .recovery import check_files

        check_files(sha256, last)


def _app_id(part, head=None):
    found = app_id(part, head)
    return found.hex() if found else None


def _write_record(part, record):
    try:
        boot.settle()
        boot.write_record(part, record)
    except OSError as error:
        raise disk_error(error)


def _new_name(stem):
    """A name that no tree has: one with the same content may have been changed by what runs."""
    name = stem
    number = 0
    while exists(boot.TREES + name) or exists(boot.TREES + name + ".part"):
        number += 1
        name = "%s-%d" % (stem, number)
    return name


def _is_directory(path):
    return exists(path) and os.stat(path)[0] & 0x4000
