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

from .home import HOME, has_home

TREES = HOME + "/trees/"


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
    if tree and _exists(TREES + tree):
        _enter(TREES + tree)


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
        if record["app"] == app_id(part) and isinstance(record["now"], dict):
            return record
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def write_record(part, record):
    """Exchange the record of an app partition: there is the old one or this one, never half."""
    from json import dump

    path = record_path(part)
    with open(path + ".new", "w") as file:
        dump(record, file)
    os.rename(path + ".new", path)


def record_path(part):
    return "%s/%x" % (HOME, part.info()[2])


def app_id(part):
    """The last 32 bytes of the app image in a partition, in hex: its SHA-256, if it has one.

    None if there is no image.
    """
    head = bytearray(24)
    part.readblocks(0, head, 0)
    at = 24
    segment = memoryview(bytearray(8))
    try:
        for _ in range(head[1] if head[0] == 0xE9 and head[1] <= 16 else 0):
            part.readblocks(at // 4096, segment, at % 4096)
            at += 8 + int.from_bytes(segment[4:], "little")
        if at == 24:
            return None
        at = ((at + 16) & ~15) + (32 if head[23] == 1 else 0) - 32
        tail = bytearray(32)
        part.readblocks(at // 4096, tail, at % 4096)
    except OSError:  # it says that it goes on behind the partition
        return None
    return tail.hex()


def _age(part, record):
    """What to take while files are on trial, by the rules that the bootloader has for apps."""
    import machine

    if record.get("tried"):
        if machine.reset_cause() == machine.SOFT_RESET:
            return record["next"]
        record["failed"] = record.pop("next").get("sha256")
        del record["tried"]
    else:
        record["tried"] = True
    try:
        write_record(part, record)
    except OSError:
        return record["now"]  # a trial that leaves no trace could go on for ever
    return record.get("next") or record["now"]


def _enter(tree):
    if _exists(tree + "/main.py"):
        os.chdir(tree)
    path = sys.path
    path[:] = [entry for entry in path if entry not in ("", "/")]
    path.insert(0, tree)
    library = path.index("/lib") if "/lib" in path else len(path)
    path.insert(library, tree + "/lib")
    if _exists(tree + "/boot.py") or _exists(tree + "/boot.mpy"):
        __import__("boot")


def _exists(path):
    try:
        os.stat(path)
        return True
    except OSError:
        return False
