"""Puts the ``ota`` package on a board, with what it is to trust."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from mpota.errors import MpotaError
from mpota.formats.private_key import is_private_key
from mpota.mpy_cross import MpyFormat, can_compile
from mpota.push.repl import ScriptError, Session
from mpota.release.key_files import read_public_key
from mpota.release.ota_package import DATA, MARK, MODULES, choose_parts, package
from mpota.release.signing import public_to_pem
from mpota.storage.file import read_file
from mpota.units import SECTOR_SIZE, align_up

FOLDER = "/lib/ota"
_NEXT = "/lib/ota.new"  # where it becomes complete
_RESERVE = 6 * SECTOR_SIZE  # two directories, and what littlefs needs to write


@dataclass(frozen=True)
class Installed:
    """What `install` found and did."""

    copied: tuple[str, ...]  # paths on the board
    removed: tuple[str, ...]
    kept: int  # files that were there already
    is_compiled: bool
    parts: tuple[str, ...]  # of the package, that are on the board now
    keys: tuple[str, ...]  # digests of all keys that the board trusts now
    imported_from: str  # where `import ota` finds the package

    @property
    def is_changed(self) -> bool:
        return bool(self.copied or self.removed)


class _Found(TypedDict):
    """What a board has: SHA-256 (hex) by name, and how far an install had come."""

    package: dict[str, str]
    root: dict[str, str]
    is_unfinished: bool
    needs_release: bool  # it has keys, or has taken a release


def install(
    session: Session,
    keys: tuple[Path, ...] = (),
    ca: Path | None = None,
    parts: Collection[str] = (),
) -> Installed:
    """Bring ``ota``, public ``keys`` (PEM) and CA certificates onto the board.

    The package consists of the core, ``parts``, those that were installed before, and what the keys
    on the board need. What is there already, by its SHA-256, is not copied again. A new version
    takes the place of the old one as a whole, once it is complete on the board: wherever power is
    lost, `import ota` finds the one or the other. Raises MpotaError for a board that stores
    something else or has no room for both, ScriptError for a key that it does not take.
    """
    format = read_mpy_format(session)
    is_compiled = can_compile(format)
    found = _look(session)
    if found["is_unfinished"]:
        session.execute(f"{_SWITCH}\n_finish()")
        found = _look(session)
    chosen = choose_parts(parts, found["package"], found["needs_release"] or bool(keys))
    wanted = package(format, is_compiled, chosen)
    more = {} if ca is None else {ca_path(ca): read_certificates(ca)}
    missing = _missing(wanted, found["package"])
    stale = sorted(
        name
        for name in found["package"]
        if (name.endswith(MODULES) or name in DATA.values()) and name not in wanted
    )
    missing_more = _missing(more, {f"/{name}": digest for name, digest in found["root"].items()})
    if stale or any(name in found["package"] for name in missing):
        _check_room(session, wanted)
        _replace(session, wanted, missing)
    else:
        _write(session, FOLDER, missing)
    session.write_parts(missing_more)
    session.finish_parts(missing_more)
    if missing or stale:
        session.execute(COMPACT)
        session.soft_reset()  # unloads the modules of the former version
    trusted = _trust(session, keys) if "release" in chosen else ()
    origin = session.evaluate(
        "ota.__file__", "import ota", fits=lambda value: isinstance(value, str)
    )
    copied = (*(f"{FOLDER}/{name}" for name in missing), *missing_more)
    removed = tuple(f"{FOLDER}/{name}" for name in stale)
    kept = len(wanted) + len(more) - len(copied)
    return Installed(copied, removed, kept, is_compiled, chosen, trusted, origin)


def read_mpy_format(session: Session) -> MpyFormat:
    """The ``.mpy`` format that the board on this session loads."""
    word = session.evaluate("getattr(sys.implementation, '_mpy', 0)", _SYS, fits=_is_word)
    return MpyFormat.from_word(word)


def ca_path(path: Path) -> str:
    """Where CA certificates are put on a board: what ``cafile=`` takes there."""
    return "/ca.pem" if read_file(path).lstrip().startswith(b"-----") else "/ca.der"


def read_certificates(path: Path) -> bytes:
    """CA certificates for a board. Raises MpotaError if there is a private key among them."""
    data = read_file(path)
    if is_private_key(data):
        raise MpotaError(f"{path.name} holds a private key, which is not for boards")
    return data


# --- on the board


def _look(session: Session) -> _Found:
    package, root = session.digests(FOLDER), session.digests("/")
    is_unfinished, needs_release = session.evaluate(
        "[_is_unfinished(), _has_keys() or _exists('/.ota')]",
        _SWITCH + _KEYS,
        fits=lambda value: isinstance(value, list) and [type(v) for v in value] == [bool, bool],
    )
    return _Found(
        package=package, root=root, is_unfinished=is_unfinished, needs_release=needs_release
    )


def _missing(wanted: Mapping[str, bytes], found: Mapping[str, str]) -> dict[str, bytes]:
    return {
        name: data
        for name, data in wanted.items()
        if found.get(name) != hashlib.sha256(data).hexdigest()
    }


def _check_room(session: Session, files: Mapping[str, bytes]) -> None:
    free = session.evaluate(
        "s[0] * s[3]", "import os\ns = os.statvfs('/')", fits=lambda value: type(value) is int
    )
    needed = sum(align_up(len(data) + 1, SECTOR_SIZE) for data in files.values()) + _RESERVE
    if needed > free:
        raise MpotaError(
            f"{session.port}: until it is complete, the new package needs {needed:,} bytes of the "
            f"board's file system beside the old one, {free:,} are free",
            f"free {needed - free:,} bytes: remove files (mpota fs rm), or {FOLDER} itself, and "
            "install again: until then the board has no ota",
        )


def _write(session: Session, folder: str, files: Mapping[str, bytes]) -> None:
    paths = {f"{folder}/{name}": data for name, data in files.items()}
    session.write_parts(paths)
    session.finish_parts(paths)


def _replace(session: Session, wanted: Mapping[str, bytes], missing: Mapping[str, bytes]) -> None:
    """Make the new package complete beside the old one, then switch."""
    _write(session, _NEXT, missing)
    kept = sorted(wanted.keys() - missing.keys())
    session.execute(f"{_COPY}\nfor name in {kept!r}: _copy(name)")
    if _missing(wanted, session.digests(_NEXT)):
        raise MpotaError(f"{session.port}: {_NEXT} does not read back as it was written")
    _write(session, _NEXT, {MARK: b""})
    session.execute(f"{_SWITCH}\n_finish()")


def _trust(session: Session, keys: tuple[Path, ...]) -> tuple[str, ...]:
    for path in keys:
        text = public_to_pem(read_public_key(path)).decode()  # never the file: it may be private
        try:
            session.execute(f"import ota\nota.keys.add({text!r})")
        except ScriptError as error:
            raise MpotaError(f"{path.name}: {error}") from None
    trusted: list[str] = session.evaluate("ota.keys.trusted()", "import ota", fits=_are_texts)
    return tuple(trusted)


def _is_word(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 32


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


_SYS = "import sys"
_COPY = """
def _copy(name):
    buf = bytearray(512)
    with open("/lib/ota/" + name, "rb") as source, open("/lib/ota.new/" + name, "wb") as target:
        while True:
            count = source.readinto(buf)
            if not count:
                break
            target.write(memoryview(buf)[:count])
"""
# A directory of littlefs is a log, which each look-up reads up to its end, and backwards from there
# (lfs.c: lfs_dir_fetchmatch, lfs_dir_getslice). When its block is full it is written anew, as short
# as can be, into the other block of its pair: what is written here until then changes nothing else.
# Each import reads the flash some 70 times instead of some 300.
COMPACT = """
def _compact(folder):
    import os
    from binascii import crc32
    from flashbdev import bdev
    if not bdev or bdev.ioctl(5, 0) != 4096:
        return
    stem = folder + "/.compact"
    head, buf = bytearray(256), bytearray(4096)
    names = [name.encode() for name in os.listdir(folder)]
    blocks = []
    for block in range(bdev.ioctl(4, 0)):
        bdev.readblocks(block, head, 0)
        if any(name in head for name in names):
            blocks.append(block)
    def state():
        found = []
        for block in blocks:
            bdev.readblocks(block, buf)
            found.append(crc32(buf))
        return found
    before = state()
    for _ in range(140):
        open(stem, "w").close()
        after = state()
        if after == before:  # it went into another block
            break
        before = after
    os.remove(stem)
_compact("/lib/ota")
"""
# Every step is one rename. /ota comes before /lib/ota in sys.path: whatever a cut leaves, `import
# ota` finds a whole package, and _finish goes on. Where somebody has put another one at /ota, that
# is what is imported anyway.
_SWITCH = """
import os
def _exists(path):
    try:
        os.stat(path)
        return True
    except OSError:
        return False
def _remove(path):
    if os.stat(path)[0] & 0x4000:
        for name in os.listdir(path):
            _remove(path + "/" + name)
        os.rmdir(path)
    else:
        os.remove(path)
def _clear_old():
    if not _exists("/lib/ota.old"):
        return
    for name in os.listdir("/lib/ota.old"):
        path = "/lib/ota.old/" + name
        is_ours = name.rpartition(".")[2] in ("py", "mpy", "pack", "new") or name == "moving"
        if is_ours and not os.stat(path)[0] & 0x4000 or _exists("/lib/ota/" + name):
            _remove(path)
        else:  # what somebody has put there stays
            os.rename(path, "/lib/ota/" + name)
    os.rmdir("/lib/ota.old")
def _is_unfinished():
    return any(_exists(path) for path in (
        "/ota/moving", "/lib/ota/moving", "/lib/ota.new", "/lib/ota.old"
    )) or any(name.endswith(".new") for name in _names("/lib/ota"))
def _names(path):
    return os.listdir(path) if _exists(path) else []
def _finish():
    new = "/ota"
    if _exists("/lib/ota.new/moving") and not _exists("/ota/moving"):
        if _exists("/ota"):
            new = "/lib/ota.new"
        else:
            os.rename("/lib/ota.new", new)
    if _exists(new + "/moving"):
        if _exists("/lib/ota"):
            _clear_old()
            os.rename("/lib/ota", "/lib/ota.old")
        os.rename(new, "/lib/ota")
    _clear_old()
    if _exists("/lib/ota.new"):
        _remove("/lib/ota.new")
    for name in _names("/lib/ota"):
        if name.endswith(".new") or name == "moving":
            os.remove("/lib/ota/" + name)
"""
# device/ota/base.py: has_trust.
_KEYS = """
def _has_keys():
    try:
        from esp32 import NVS
    except ImportError:
        return False
    for name in ("trust", "trust-copy"):
        try:
            NVS("ota").get_blob(name, bytearray(1))
        except OSError as error:
            if error.args[0] in (-0x1101, -0x1102, -0x1105, -0x110F):
                continue
        return True
    return False
"""
