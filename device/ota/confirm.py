"""What follows when the app that runs is confirmed: its files, its counter, its changes of keys.

Called by ota.rollback.cancel(), on boards that ever took a release. All of it may be cut short at
any point and is taken up again by the next call.
"""

import os

from esp32 import Partition

from . import boot, otadata


def confirm():
    """Keep the files on trial, raise the counter, change keys, remove what is of no more use."""
    part = Partition(Partition.RUNNING)
    if otadata.state(part) == otadata.PENDING_VERIFY:
        return
    record = boot.read_record(part)
    if record is None:
        return
    if record.get("tried"):
        record = {"app": record["app"], "now": record["next"]}
        boot.write_record(part, record)
    release = record["now"]
    apply_trust(release)
    if "add" in release:
        # Once: another slot's release may have changed these keys since, or the user.
        del release["add"], release["retire"]
        boot.write_record(part, record)
    sweep()


def apply_trust(release):
    """Bring counter and keys to what a confirmed release says; they change in one piece."""
    from . import keys
    from .errors import ReleaseError

    trust = keys.load()
    changes = release.get("counter", 0) > trust.counter
    if changes:
        trust.counter = release["counter"]
    if "add" in release:
        try:
            changes = trust.change(release["add"], release["retire"]) or changes
        except ReleaseError:
            pass  # it was possible when the release came: the keys were changed by hand since
    if changes:
        trust.save()


def sweep(staged=()):
    """Remove what belongs to no image any more: trees, certificates, records, halves of them."""
    keep = set(staged)
    keep.add("trees")
    for part in Partition.find(Partition.TYPE_APP):
        record = boot.read_record(part)
        if record:
            keep.add(boot.record_path(part).rpartition("/")[2])
            for release in (record["now"], record.get("next", {})):
                keep.update((release.get("tree"), release.get("certs")))
    for folder in (boot.HOME + "/", boot.TREES):
        for name in os.listdir(folder[:-1]):
            if name not in keep:
                _remove(folder + name)


def _remove(path):
    if os.stat(path)[0] & 0x4000:
        for name in os.listdir(path):
            _remove(path + "/" + name)
        os.rmdir(path)
    else:
        os.remove(path)
