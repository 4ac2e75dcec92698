"""Puts the ``ota`` package on a board, with what it is to trust."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from mpota.carried import data_directory
from mpota.deploy import ScriptError, Session
from mpota.errors import MpotaError
from mpota.formats.private_key import is_private_key
from mpota.key_files import read_public_key
from mpota.mpy import MpyFormat, can_compile, compile_module
from mpota.signing import public_to_pem
from mpota.storage.file import read_file

FOLDER = "/lib/ota"
_SUFFIXES = (".py", ".mpy", ".new")


@dataclass(frozen=True)
class Installed:
    """What `install` found and did."""

    copied: tuple[str, ...]  # paths on the board
    removed: tuple[str, ...]
    kept: int  # files that were there already
    is_compiled: bool
    keys: tuple[str, ...]  # digests of all keys that the board trusts now
    imported_from: str  # where `import ota` finds the package

    @property
    def is_changed(self) -> bool:
        return bool(self.copied or self.removed)


def install(session: Session, keys: tuple[Path, ...] = (), ca: Path | None = None) -> Installed:
    """Bring ``ota``, public ``keys`` (PEM) and CA certificates onto the board.

    What is there already, by its SHA-256, is not copied again. The files of a new version take
    the place of the old ones together, once all of them are on the board. Raises MpotaError for a
    board that stores something else, ScriptError for a key that it does not take.
    """
    format = MpyFormat.from_word(
        session.evaluate("getattr(sys.implementation, '_mpy', 0)", _SYS, fits=_is_word)
    )
    is_compiled = can_compile(format)
    wanted = {f"{FOLDER}/{name}": data for name, data in package(format, is_compiled).items()}
    if ca is not None:
        wanted[ca_path(ca)] = certificates = read_file(ca)
        if is_private_key(certificates):
            raise MpotaError(f"{ca.name} holds a private key, which is not for boards")
    found = {f"{FOLDER}/{name}": digest for name, digest in session.digests(FOLDER).items()}
    found |= {f"/{name}": digest for name, digest in session.digests("/").items()}
    missing = {
        path: data
        for path, data in wanted.items()
        if found.get(path) != hashlib.sha256(data).hexdigest()
    }
    stale = tuple(
        path
        for path in found
        if path.startswith(FOLDER) and path not in wanted and path.endswith(_SUFFIXES)
    )
    session.write_parts(missing)
    if missing or stale:
        session.finish_parts(missing, tuple(path for path in stale if path[:-4] not in missing))
        session.soft_reset()  # lets go of the modules of the former version
    trusted = _trust(session, keys)
    origin = session.evaluate(
        "ota.__file__", "import ota", fits=lambda value: isinstance(value, str)
    )
    kept = len(wanted) - len(missing)
    return Installed(tuple(missing), stale, kept, is_compiled, trusted, origin)


def package(format: MpyFormat, is_compiled: bool) -> dict[str, bytes]:
    """The files of the ``ota`` package for a board, by their names in it."""
    files = {}
    for path in sorted((data_directory("device") / "ota").glob("*.py")):
        source = path.read_bytes()
        if is_compiled:
            files[path.stem + ".mpy"] = compile_module(source, f"ota/{path.name}", format)
        else:
            files[path.name] = source
    if not files:
        raise MpotaError("this mpota comes without the ota package")
    return files


def ca_path(path: Path) -> str:
    """Where CA certificates are put on a board: what ``cafile=`` takes there."""
    return "/ca.pem" if read_file(path).lstrip().startswith(b"-----") else "/ca.der"


def _trust(session: Session, keys: tuple[Path, ...]) -> tuple[str, ...]:
    for path in keys:
        text = public_to_pem(read_public_key(path)).decode()  # never what is in the file
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
