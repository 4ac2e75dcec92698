"""What became of a release: offered, started, waiting for its first boot, confirmed or failed.

One record for the whole board, whoever offered the release: a channel, a server, a broker. It tells
the truth and lasts: success is a boot that was confirmed, told by the image that runs; failure is
told by the image that came back.

    trial = ota.trial.load()
    if trial.stage == ota.trial.FAILED and not trial.told: ...

In NVS it stands twice, and the older of the two is written: whenever the power goes, there is the
state before or the one after (keys.py has why one blob is not enough).
"""

import struct

from esp32 import Partition
from micropython import const

from . import base, otadata
from .twin import TRIAL, recall_twin, save_twin

NONE = const(0)
OFFERED = const(1)
STARTED = const(2)
SWITCHED = const(3)  # it is to boot next, or runs and is not confirmed
CONFIRMED = const(4)
FAILED = const(5)  # it has had its boot and was given up
REFUSED = const(6)  # it did not get so far; `why` says what was wrong
NAMES = ("none", "offered", "started", "switched", "confirmed", "failed", "refused")

# format, generation, stage, attempts, power cuts that were forgiven, told, number of digests that
# failed before, tag; offset of the slot (0: files), what stands there; the release's digest.
_HEAD = "<BIBBBBBII32s32s"
_HEAD_SIZE = const(82)
_FORMAT = const(1)
_SHORT = const(8)  # bytes of a digest that failed before
_MAX_FAILED = const(4)
_MAX_TEXT = const(96)
_ANY = b"\0" * 32


class Trial:
    """``digest``: 32 bytes that the release is known by; ``origin``: who offered it, a word;
    ``tag``: a number of theirs. ``stage``: see above; ``attempts``: how often it was begun.
    ``why``: in words, where it failed or was refused; ``told``: whether that has been reported.
    """

    stage = NONE
    attempts = cuts = tag = told = 0
    digest = what = _ANY
    offset = 0
    origin = version = why = ""
    failed = b""  # the starts of digests that failed before this one

    def has_failed(self, digest):
        """Whether the release with this digest had its trial on this board and failed."""
        if self.stage == FAILED and digest == self.digest:
            return True
        start = bytes(digest[:_SHORT])
        failed = self.failed
        return any(start == failed[at : at + _SHORT] for at in range(0, len(failed), _SHORT))


def load():
    """The record, brought up to date: a trial may have ended since. Raises OTAError ("trial")."""
    trial = Trial()
    data = recall_twin(TRIAL)
    if len(data) >= _HEAD_SIZE and data[0] == _FORMAT:
        (
            _, _, trial.stage, trial.attempts, trial.cuts, trial.told, count,
            trial.tag, trial.offset, trial.what, trial.digest,
        ) = struct.unpack_from(_HEAD, data)  # fmt: skip
        end = _HEAD_SIZE + count * _SHORT
        trial.failed = bytes(data[_HEAD_SIZE:end])
        try:
            trial.origin, trial.version, trial.why = str(data[end:], "utf-8").split("\0")
        except ValueError:
            pass
        if trial.stage == STARTED and trial.offset:
            _find_out(trial)
        if trial.stage == SWITCHED:
            _settle(trial)
    return trial


def offer(trial, origin, digest, version, tag=0):
    """``trial`` is of this release from now on, if it is not. It is stored when that is begun.

    What was known of another one is let go of, but that it failed.
    """
    if digest == trial.digest:
        if tag != trial.tag:  # it is offered anew
            trial.attempts = 0
        trial.origin, trial.tag = origin, tag
        return
    if trial.stage == FAILED:
        failed = trial.failed + trial.digest[:_SHORT]
        trial.failed = failed[-_MAX_FAILED * _SHORT :]
    trial.stage = OFFERED
    trial.attempts = trial.cuts = trial.told = trial.offset = 0
    trial.what = _ANY
    trial.why = ""
    trial.digest, trial.origin, trial.version, trial.tag = digest, origin, version, tag


def start(trial):
    """Note that the release is about to be installed."""
    trial.attempts = min(trial.attempts + 1, 255)
    trial.stage, trial.why, trial.told, trial.offset = STARTED, "", 0, 0
    _save(trial)


def wait(trial, why):
    """Note that the release has come, and waits to be selected for the next boot."""
    trial.why, trial.offset = why, 0
    _save(trial)


def switching(trial):
    """It is about to be made what boots next: note what is so before, to tell it from what follows.

    If the power fails between that and `switched`, `load` finds out.
    """
    trial.offset, trial.what = Partition(Partition.RUNNING).info()[2], _state()
    _save(trial)


def refuse(trial, why):
    """Note that the release cannot be installed, and that nothing has changed."""
    _end(trial, REFUSED, why)


def fail(trial, why):
    """Note that the release has failed on this board, in a trial that this module did not see."""
    _end(trial, FAILED, why)


def _end(trial, stage, why):
    trial.why = "".join([c if " " <= c <= "~" else "?" for c in str(why)[:_MAX_TEXT]])
    trial.stage, trial.told = stage, 0
    _save(trial)


def switched(trial):
    """Note that the release is installed, and what is to boot; without a boot it is confirmed."""
    trial.offset, trial.what = _find_waiting()
    trial.stage = SWITCHED if trial.what != _ANY else CONFIRMED
    trial.why, trial.told = "", 0
    _save(trial)


def tell(trial):
    """Note that the outcome has been reported."""
    if not trial.told:
        trial.told = 1
        _save(trial)


def runs(trial):
    """Whether what was confirmed is what runs now, as far as that can be told."""
    return bool(trial.what != _ANY and _ended(trial))


def report():
    """What has become of the last release, as a dict for whoever wants to know.

    ``stage``: a name from NAMES; ``version``, ``origin``, ``tag``, ``attempts``, ``why``, and
    ``digest`` in hex.
    """
    trial = load()
    return {
        "stage": NAMES[trial.stage],
        "version": trial.version,
        "origin": trial.origin,
        "tag": trial.tag,
        "attempts": trial.attempts,
        "why": trial.why,
        "digest": trial.digest.hex(),
    }


def _save(trial):
    texts = "\0".join((trial.origin, trial.version, trial.why))
    save_twin(
        TRIAL,
        lambda generation: struct.pack(
            _HEAD, _FORMAT, generation, trial.stage, trial.attempts, trial.cuts, trial.told,
            len(trial.failed) // _SHORT, trial.tag, trial.offset, trial.what, trial.digest,
        )
        + trial.failed
        + texts.encode(),
    )  # fmt: skip


# --- how it ended


def _find_waiting():
    """(offset of the slot, its app) that is to boot, or (0, the files) that are to be tried."""
    running = Partition(Partition.RUNNING)
    boots = _boots()
    if boots.info()[2] != running.info()[2]:
        return boots.info()[2], otadata.app_id(boots) or _ANY
    if otadata.has_home():
        from .boot import read_record

        record = read_record(running)
        if record and "next" in record:
            return 0, _files_id(record["next"])
    return 0, _ANY


def _find_out(trial):
    """Find out whether a switch that was about to happen did happen."""
    before, trial.offset = trial.offset, 0
    if trial.what == _state():
        trial.what = _ANY
    else:
        running = Partition(Partition.RUNNING)
        trial.stage = SWITCHED
        trial.offset, trial.what = _find_waiting()
        if running.info()[2] != before:  # it has been started
            trial.offset, trial.what = running.info()[2], otadata.app_id(running) or _ANY
        elif trial.what == _ANY:  # files that are confirmed already
            from .boot import read_record

            trial.what = _files_id((read_record(running) or {"now": {}})["now"])
    _save(trial)


def _state():
    """32 bytes that change once something else runs, is selected to boot next, or waits for it."""
    from hashlib import sha256

    running = Partition(Partition.RUNNING)
    state = sha256(struct.pack("<II", running.info()[2], _boots().info()[2]))
    state.update(otadata.app_id(running) or b"")
    if otadata.has_home():
        from .boot import read_record

        record = read_record(running) or {}
        for key in ("now", "next"):
            if key in record:
                state.update(_files_id(record[key]))
    return state.digest()


def _boots():
    try:
        return Partition(Partition.BOOT)
    except OSError:  # no otadata: it is the one app
        return Partition(Partition.RUNNING)


def _files_id(release):
    """What files that came without an app are known by: the digest of the tree, else of a name."""
    if "sha256" in release and "tree" in release:
        return bytes.fromhex(release["sha256"])
    from hashlib import sha256

    return sha256(release.get("certs", "").encode()).digest()


def _ended(trial):
    return _app_ended(trial) if trial.offset else _files_ended(trial)


def _settle(trial):
    ended = _ended(trial)
    if ended is None:
        return
    if ended:
        trial.stage = CONFIRMED
    else:
        _fail(trial)
    trial.told = 0
    _save(trial)


def _app_ended(trial):
    """Whether the app was confirmed; None while that is not known."""
    running = Partition(Partition.RUNNING)
    if running.info()[2] == trial.offset and otadata.app_id(running) == trial.what:
        waits = otadata.state(running) == otadata.PENDING_VERIFY or (
            # slot.py notes it; ota.rollback.cancel() removes that.
            base.recall("trial", 36)[:4] == struct.pack("<I", trial.offset)
        )
        return None if waits else True
    boots = _boots()
    return (
        None if boots.info()[2] == trial.offset and otadata.app_id(boots) == trial.what else False
    )


def _files_ended(trial):
    from .boot import read_record

    record = read_record(Partition(Partition.RUNNING)) or {"now": {}}
    if "next" in record and _files_id(record["next"]) == trial.what:
        return None  # the files wait for their boot, or are in it
    return _files_id(record["now"]) == trial.what


def _fail(trial):
    """It was given up. If the power may have gone in its first boot, once it is forgiven, as
    recovery.py has it.
    """
    from machine import PWRON_RESET, reset_cause

    if reset_cause() == PWRON_RESET and not trial.cuts:
        trial.cuts = 1
        trial.stage, trial.offset = STARTED, 0
        trial.why = "the power failed in its first boot"
        return
    trial.stage = FAILED
    trial.why = "not confirmed in its first boot: what ran before came back"
