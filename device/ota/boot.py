"""Leads sys.path to the files that came with the app that runs. The first line of boot.py:

    import ota.boot; ota.boot.activate()

Files that came with a release (files.py) stand in a directory of their own, and a record for each
app partition says which directory belongs to the image in it. The record is looked up by the
partition that runs and by the end of the image in it: whichever slot the bootloader starts, and
however it came there, the tree that came with it is found, and no other.
"""

import os
import sys

from esp32 import Partition

from .otadata import HOME, app_id, has_home

TREES = HOME + "/trees/"
_SETTLED = HOME + "/settled"
_TYPES = {
    "sha256": str, "tree": str, "certs": str, "name": str, "version": str, "counter": int,
    "disk": int,
}  # fmt: skip


def activate():
    """Make the matching tree the place to import from, instead of "/"; /lib comes behind it.

    If it has a `main.py`, it is made the current directory as well, so that this one is run. Its
    `boot.py` is run now, if it has one. Without a tree nothing changes. Files on trial get one
    boot: if they are not confirmed in it, the next one takes the former.
    """
    if not has_home() or any(path.startswith(TREES) for path in sys.path):
        return
    part = Partition(Partition.RUNNING)
    record = read_record(part)
    if not record:
        return
    release = _age(part, record) if "next" in record else record["now"]
    tree = release.get("tree")
    if tree and exists(TREES + tree):
        _enter(TREES + tree)


def check_confirmed():
    """Raises StateError while the app or the files that run are unconfirmed."""
    from .otadata import check_app_confirmed, unconfirmed

    check_app_confirmed()
    if is_on_trial():
        raise unconfirmed("the files in use are")


def is_on_trial():
    """Whether files that came without a new app are in use and not confirmed."""
    return has_home() and "tried" in (read_record(Partition(Partition.RUNNING)) or ())


def read_record(part):
    """The record of an app partition, None if there is none for the image in it.

    {"app": end of the image, "now": what belongs to it, "next": files on trial, "tried": true}
    """
    try:
        with open(record_path(part)) as file:
            from json import load

            record = load(file)
        app = app_id(part)
        follows = record["next"] if "next" in record or "tried" in record else {}
        if app and record["app"] == app.hex():
            for key, value in list(record["now"].items()) + list(follows.items()):
                if not isinstance(value, _TYPES.get(key, object)):
                    return None
            return record
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        pass  # no record, or a damaged one
    return None


def write_record(part, record):
    """Replace the record of an app partition: a power cut leaves the old one or this one."""
    from json import dump

    path = record_path(part)
    with open(path + ".new", "w") as file:
        dump(record, file)
    os.rename(path + ".new", path)


def running():
    """What belongs to the app that runs: a dict with name, version, tree, ... or an empty one."""
    record = read_record(Partition(Partition.RUNNING)) or {"now": {}}
    return record["next"] if record.get("tried") else record["now"]


def settle(part=None):
    """Note that nothing is left to confirm while the app of ``part`` runs; None: that there is.

    The size of a file is the offset of the partition / 64 KiB: to know it takes one look into the
    directory (__init__.py). The note is gone before anything else changes, and a power cut leaves
    it or an empty one.
    """
    with open(_SETTLED, "w") as file:
        if part:
            file.write(" " * (part.info()[2] >> 16))


def record_path(part):
    return "%s/%x" % (HOME, part.info()[2])


def _age(part, record):
    """The release to use while files are on trial, by the bootloader's rules for apps."""
    import machine

    if record.get("tried"):
        cause = machine.reset_cause()
        if cause == machine.SOFT_RESET:
            return record["next"]
        give_up(record, cause == machine.PWRON_RESET)
    else:
        record["tried"] = True
    try:
        write_record(part, record)
    except OSError:
        return record["now"]  # a trial that cannot be recorded could go on for ever
    return record.get("next") or record["now"]


def give_up(record, is_power_cut):
    """Take the files on trial out of ``record``, which is to be written then.

    They are remembered as apps are (recovery.py), before the record is exchanged: a power cut leads
    here once more.
    """
    record["failed"] = record.pop("next").get("sha256")
    del record["tried"]
    try:
        from .recovery import add_files

        add_files(record["failed"], is_power_cut)
    except Exception:  # the record alone remembers it: then it is not forgiven
        pass


def _enter(tree):
    if exists(tree + "/main.py"):
        os.chdir(tree)
    path = sys.path
    path[:] = [entry for entry in path if entry not in ("", "/")]
    path.insert(0, tree)
    library = path.index("/lib") if "/lib" in path else len(path)
    path.insert(library, tree + "/lib")
    if exists(tree + "/boot.py") or exists(tree + "/boot.mpy"):
        __import__("boot")


def exists(path):
    """Whether there is a file or directory."""
    try:
        os.stat(path)
        return True
    except OSError:
        return False
