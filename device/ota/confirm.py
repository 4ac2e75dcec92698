"""Whether the app that runs is confirmed, and what follows when it is: files, counter, keys.

`confirm` is called by ota.rollback.cancel(), on boards that ever took a release, until it has been
complete once for the app and files that run (boot.py: settle). All of it may be cut short at any
point and is taken up again by the next call.
"""

import os
import sys

from esp32 import Partition

from . import boot, otadata


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
        if "sha256" in record["now"] and otadata.has_note("failed"):
            from .failed_version import forgive

            forgive(record["now"]["sha256"])
        is_done = apply_trust(record["now"])
        path = sys.modules[__name__.rpartition(".")[0]].__path__
        if path[:5] in ("/ota", "/.ota"):  # this package came with a release
            from .self_update import finish

            finish(path)
        if otadata.owner is not None:  # what an update has staged is in no record yet
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
    from .errors import ReleaseError

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


def check_confirmed():
    """Raises StateError while the app or the files that run are unconfirmed.

    A failed update would leave nothing to roll back to.
    """
    part = Partition(Partition.RUNNING)
    what = None
    if otadata.state(part) == otadata.PENDING_VERIFY:
        what = "the running app (%s) is" % part.info()[4]
    elif boot.is_on_trial():
        what = "the files in use are"
    if what:
        from .errors import StateError

        raise StateError(
            "unconfirmed",
            "%s not confirmed: call ota.rollback.cancel() first, or a failed update would leave "
            "nothing to roll back to" % what,
        )


def check_selected():
    """Raises StateError while another app waits for its first boot.

    What a release without an app brings belongs to the app that runs: the other would not have it.
    """
    try:
        boots = Partition(Partition.BOOT).info()
    except OSError:  # no otadata: it is the one app
        return
    if boots[2] != Partition(Partition.RUNNING).info()[2]:
        from .errors import StateError

        raise StateError(
            "waiting",
            "the app in %s waits for the restart, and the release has none: restart first, or call "
            "ota.rollback.cancel_force() to keep the app that runs" % boots[4],
        )


def give_up_waiting():
    """Another app boots next: if that fails, the one that runs comes back with what it has now."""
    part = Partition(Partition.RUNNING)
    record = boot.read_record(part)
    if record and "next" in record and "tried" not in record:
        del record["next"]
        boot.write_record(part, record)


def sweep(staged=()):
    """Remove what belongs to no image any more: trees, certificates, records, halves of them."""
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
