"""Releases on the desk: contents -> manifest -> bundle, or files beside a manifest to publish."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mpota.errors import MpotaError, UsageError
from mpota.firmware.firmware import read_app
from mpota.formats.bundle import Bundle, decode, is_bundle
from mpota.formats.chain import head_last, make_chain
from mpota.formats.delta import make_delta
from mpota.formats.frames import compress
from mpota.formats.manifest import Form, Manifest, Payload
from mpota.formats.payloads import APP, CERTS, DATA, FILES, KINDS
from mpota.formats.private_key import is_private_key
from mpota.formats.signature import EcdsaKey, PublicKey, padded, parse_sector
from mpota.formats.tar import Member, read_tree, write_tar
from mpota.mpy_cross import MpyFormat, compile_source, word_of
from mpota.release.signing import PrivateKey, check_app_signature, check_signature, sign
from mpota.storage.file import from_os, read_file, write_file
from mpota.units import SECTOR_SIZE

# Names of files that are never meant for a board, wherever they stand in a tree.
IGNORED = frozenset({"__pycache__", ".git", ".DS_Store", ".mypy_cache", ".ruff_cache"})
# MicroPython starts these two as text; a module of the tree may be compiled.
_SCRIPTS = frozenset({"boot.py", "main.py"})


@dataclass(frozen=True)
class Encoded:
    """Bytes that give a content; ``base``: SHA-256 (hex) of what a delta starts from; ``chain``:
    the first link (hex) of a chained stream.
    """

    encoding: str
    member: str
    data: bytes
    base: str | None = None
    chain: str | None = None

    def form(self, place: str) -> Form:
        """The manifest's entry; ``place``: "member" or "url"."""
        sha256 = hashlib.sha256(self.data).hexdigest()
        return Form(
            len(self.data),
            sha256,
            encoding=self.encoding,
            base=self.base,
            chain=self.chain,
            **{place: self.member},
        )

    @classmethod
    def chained(cls, encoding: str, member: str, stream: bytes) -> Encoded:
        """``stream`` as a board verifies it piece by piece: see formats/chain.py."""
        data, link = make_chain(stream)
        return cls(encoding, member, data, chain=link.hex())


@dataclass(frozen=True)
class Content:
    """What one payload brings. ``member`` is its file name in a bundle or beside a manifest.

    ``encoded``: other forms of it, the smallest first; without ``is_plain`` they are all there is.
    ``chip``: the one that it is for.
    """

    kind: str
    member: str
    data: bytes
    partition: str | None = None
    encoded: tuple[Encoded, ...] = ()
    is_plain: bool = True
    chip: str | None = None

    @property
    def members(self) -> dict[str, bytes]:
        """File names and bytes of its forms, in the order of the manifest."""
        plain = {self.member: self.data} if self.is_plain else {}
        return {form.member: form.data for form in self.encoded} | plain

    def payload(self, *, as_url: bool = False) -> Payload:
        """The manifest's entry; ``as_url``: to be fetched from beside the manifest."""
        sha256 = hashlib.sha256(self.data).hexdigest()
        place = "url" if as_url else "member"
        disk = KINDS[self.kind].disk_size(self.data)
        forms = [form.form(place) for form in self.encoded]
        if self.is_plain:
            forms.append(Form(len(self.data), sha256, **{place: self.member}))
        return Payload(self.kind, len(self.data), sha256, tuple(forms), self.partition, disk)

    def compressed(self) -> Content:
        """The same with a compressed form in place of the other, if that is smaller."""
        if KINDS[self.kind].may_chain:
            stream = compress(head_last(self.data)).to_bytes()
            packed = Encoded.chained("chained-deflate", f"{self.member}.chained-deflate", stream)
            plain = self.encoded[0]
            is_smaller = len(packed.data) < len(plain.data)
            return replace(self, encoded=(packed,)) if is_smaller else self
        data = compress(self.data).to_bytes()
        if len(data) >= len(self.data):
            return self
        form = Encoded("deflate", f"{self.member}.deflate", data)
        return replace(self, encoded=(*self.encoded, form), is_plain=False)

    def with_delta(self, old: bytes) -> Content:
        """The same with a delta from ``old`` too, unless that is larger than it compressed."""
        delta = make_delta(old, self.data)
        data = delta.to_bytes()
        if delta.base is None or len(data) >= len(compress(self.data).to_bytes()):
            return self
        base = delta.base.sha256.hex()
        form = Encoded("delta", f"{self.member}.from-{base[:16]}", data, base)
        forms = sorted((form, *self.encoded), key=lambda form: len(form.data))
        return replace(self, encoded=tuple(forms))


# Whether a file or directory stays at home: by its path here, and its path in the tree.
LeftOut = Callable[[Path, str], bool]


@dataclass(frozen=True)
class Sources:
    """The files on the desk that a release is made of.

    ``firmware``: an app image or a merged firmware; ``directories``: trees laid over each other;
    ``data``: (label, file) for data partitions; ``certs``: CA certificates. ``compiled``: see
    `files_content`; ``has_ota``: see with_ota.py. ``compress``: see `Content.compressed`;
    ``bases``: firmware of which a delta leads to this one. ``is_left_out``: see `LeftOut`.
    """

    firmware: Path | None = None
    directories: tuple[Path, ...] = ()
    certs: tuple[Path, ...] = ()
    data: tuple[tuple[str, Path], ...] = ()
    compiled: MpyFormat | None = None
    compress: bool = False
    bases: tuple[Path, ...] = ()
    has_ota: bool = False
    is_left_out: LeftOut = lambda path, name: False


@dataclass(frozen=True)
class Contents:
    """What a release brings, in the order of its manifest, and the chip of the app in it."""

    contents: tuple[Content, ...]
    chip: str | None

    @classmethod
    def read(cls, sources: Sources) -> Contents:
        """Raises MpotaError for what a board would refuse."""
        found = [content for kind in KINDS for content in READERS[kind](sources)]
        chip = next((content.chip for content in found if content.chip), None)
        if sources.compress:
            found = [content.compressed() for content in found]
        if sources.bases:
            if chip is None:
                raise UsageError("a delta needs the firmware that it leads to")
            for path in sources.bases:
                found[0] = found[0].with_delta(_base(path, chip))
        return cls(tuple(found), chip)

    @property
    def mpy(self) -> int:
        """What a board must load to import the modules in it: see `mpota.mpy_cross.word_of`."""
        return word_of(
            {
                member.name: member.data
                for content in self.contents
                if content.kind == FILES
                for member in read_tree(content.data)
                if member.name.endswith(".mpy")
            }
        )

    def payloads(self, *, as_url: bool = False) -> tuple[Payload, ...]:
        """The manifest's entries; see `Content.payload`."""
        return tuple(content.payload(as_url=as_url) for content in self.contents)


def app_content(path: Path) -> Content:
    """The app image in a firmware or image file; its signature goes along.

    Raises MpotaError if there is no intact app in it.
    """
    data = _public(read_file(path), path)
    app = read_app(data, path.name)
    return Content(APP, "app.bin", app.to_bytes(), chip=app.image.chip.name)


def _base(path: Path, chip: str) -> bytes:
    """The app in a firmware file that a delta may start from."""
    content = app_content(path)
    if content.chip != chip:
        raise MpotaError(
            f"{path.name} is for {content.chip}, the firmware of this release for {chip}"
        )
    return content.data


def files_content(
    directories: Iterable[Path],
    *,
    compiled: MpyFormat | None = None,
    has_ota: bool = False,
    is_left_out: LeftOut = Sources.is_left_out,
) -> Content:
    """The trees below ``directories``, laid over each other, as one ``files`` payload.

    ``compiled``: modules become ``.mpy`` that a board with this format loads; boot.py and main.py
    at the top stay text, since MicroPython looks for these. ``has_ota``: see with_ota.py. Raises
    MpotaError for links, and for files that two trees have.
    """
    members: dict[str, Member] = {}
    for directory in directories:
        if not directory.is_dir():
            raise UsageError(f"'{directory}' is not a directory")
        for member in _read_directory(directory, directory, is_left_out):
            if compiled is not None and member.name.endswith(".py") and member.name not in _SCRIPTS:
                compiled_name = member.name.removesuffix(".py") + ".mpy"
                member = Member(compiled_name, compile_source(member.data, member.name, compiled))
            former = members.get(member.name)
            if former is not None and not (former.is_directory and member.is_directory):
                raise MpotaError(f"two directories have '{member.name}'")
            members[member.name] = member
    if has_ota:
        from mpota.release.with_ota import with_ota

        members = with_ota(members)
    if not members:
        raise MpotaError("the directories hold no files")
    data = write_tar(members[name] for name in sorted(members, key=lambda name: name.split("/")))
    read_tree(data)
    return Content(FILES, "files.tar", data)


def data_content(label: str, path: Path) -> Content:
    """The content of data partition ``label``, to be verified before it is written."""
    data, member = _public(read_file(path), path), f"{label}.bin"
    form = Encoded.chained("chained", f"{member}.chained", head_last(data))
    return Content(DATA, member, data, label, (form,), is_plain=False)


def certs_content(paths: Iterable[Path]) -> Content:
    """CA certificates: any number in PEM, or a single one in DER."""
    pieces = [_public(read_file(path), path) for path in paths]
    if any(b"-----BEGIN CERTIFICATE-----" in piece for piece in pieces) or len(pieces) > 1:
        for piece in pieces:
            if b"-----BEGIN CERTIFICATE-----" not in piece:
                raise MpotaError("certificates must be PEM, or a single one in DER")
        pieces = [piece.rstrip(b"\n") + b"\n" for piece in pieces]
    elif not pieces[0].startswith(b"0"):
        raise MpotaError("the certificate is neither PEM nor DER")
    return Content(CERTS, "certs.pem" if pieces[0][:1] != b"0" else "certs.der", b"".join(pieces))


def _read_app(sources: Sources) -> list[Content]:
    return [] if sources.firmware is None else [app_content(sources.firmware)]


def _read_files(sources: Sources) -> list[Content]:
    if sources.directories:
        return [
            files_content(
                sources.directories,
                compiled=sources.compiled,
                has_ota=sources.has_ota,
                is_left_out=sources.is_left_out,
            )
        ]
    if sources.has_ota:
        raise UsageError(
            "--with-ota brings ota among the files of the release: give --files as well",
            "an empty directory, where the program is in the firmware",
        )
    return []


def _read_certs(sources: Sources) -> list[Content]:
    return [certs_content(sources.certs)] if sources.certs else []


def _read_data(sources: Sources) -> list[Content]:
    return [data_content(label, path) for label, path in sources.data]


# How files of the desk become payloads: a row for each of `mpota.formats.payloads.KINDS`.
READERS: dict[str, Callable[[Sources], list[Content]]] = {
    APP: _read_app,
    FILES: _read_files,
    CERTS: _read_certs,
    DATA: _read_data,
}


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
        {name: data for content in contents for name, data in content.members.items()},
    )
    made.check()
    return made


def verify(made: Bundle, trusted: Iterable[PublicKey]) -> PublicKey:
    """The trusted key that signed a bundle. Raises MpotaError if none of them did."""
    if made.signature is None:
        raise MpotaError("the bundle is not signed")
    return check_signature(made.manifest_bytes, made.signature, trusted)


@dataclass(frozen=True)
class VerifiedRelease:
    """What `verify_file` found: the manifest (None for an app image), whether there is a
    signature, and whose it is (None: no key was given to check it with).
    """

    manifest: Manifest | None
    signer: PublicKey | EcdsaKey | None
    is_signed: bool


def verify_file(path: Path, app_keys: Iterable[PublicKey | EcdsaKey]) -> VerifiedRelease:
    """Check a bundle, a published manifest with what is beside it, or a signed app image.

    Without ``app_keys`` only that it is whole; ECDSA keys sign apps alone. Raises MpotaError if
    anything does not fit.
    """
    app_keys = tuple(app_keys)
    data = read_file(path)
    if is_bundle(data) or data[:1] == b"{":
        return _verify_release(path, data, app_keys)
    app = read_app(data, path.name)
    if not app_keys:
        return VerifiedRelease(None, None, bool(app.signature))
    if not app.signature:
        raise MpotaError(f"{path.name} is not signed")
    content, sector = app.to_bytes()[:-SECTOR_SIZE], app.signature[-SECTOR_SIZE:]
    return VerifiedRelease(None, check_app_signature(content, sector, app_keys), True)


def _verify_release(
    path: Path, data: bytes, keys: tuple[PublicKey | EcdsaKey, ...]
) -> VerifiedRelease:
    trusted = tuple(key for key in keys if isinstance(key, PublicKey))
    if len(trusted) < len(keys):
        raise UsageError(f"{path.name} is a release: releases are signed by RSA, not by ECDSA")
    if is_bundle(data):
        made = Bundle.from_bytes(data)
        signer = verify(made, trusted) if trusted else None
        return VerifiedRelease(made.manifest, signer, bool(made.signature))
    return _verify_published(path, data, trusted)


def _verify_published(path: Path, data: bytes, trusted: tuple[PublicKey, ...]) -> VerifiedRelease:
    manifest = Manifest.from_bytes(data)
    signer, signature = None, path.with_suffix(".sig")
    if trusted:
        signer = check_signature(data, read_file(signature), trusted)
    for payload, form in ((p, form) for p in manifest.payloads for form in p.forms):
        if form.url is not None and not _is_elsewhere(form.url):
            data = read_file(path.parent / form.url)
            form.check(data, f"'{form.url}'")
            decode(form, payload, data, f"'{form.url}'")
    return VerifiedRelease(manifest, signer, signature.exists())


def _is_elsewhere(url: str) -> bool:
    return "://" in url or url.startswith(("/", "?", "#")) or ".." in url.split("/")


def sign_bundle(made: Bundle, keys: tuple[PrivateKey, ...]) -> Bundle:
    """The bundle with signatures of ``keys`` in place of those that it has."""
    return replace(made, signature=sign(made.manifest_bytes, keys))


def sign_app(data: bytes, name: str, keys: tuple[PrivateKey, ...]) -> bytes:
    """An app image, padded and signed as ``espsecure sign-data --version 2`` does.

    A signature that it has is replaced. Raises MpotaError if ``data`` is no intact app.
    """
    image = read_app(data, name).image.data
    return padded(image) + sign(image, keys)


def attach(content: bytes, signed: bytes) -> bytes:
    """The signature sector for ``content`` that espsecure (or an HSM behind it) has made.

    ``signed``: what it wrote, or only its last sector. Raises MpotaError if that is no valid
    signature over ``content``.
    """
    sector = signed[-SECTOR_SIZE:]
    check_signature(content, sector, [block.key for block in parse_sector(sector)])
    return sector


def publish(
    directory: Path, manifest: Manifest, contents: Contents, keys: tuple[PrivateKey, ...]
) -> list[Path]:
    """Write a manifest, its signature and its payloads into ``directory``, the manifest last.

    A board that fetches it meanwhile finds the former release or this one, by the digests.
    """
    directory.mkdir(parents=True, exist_ok=True)
    data = manifest.to_bytes()
    files = {name: data for content in contents.contents for name, data in content.members.items()}
    if keys:
        files["manifest.sig"] = sign(data, keys)
    files["manifest.json"] = data
    for name, content in files.items():
        write_file(directory / name, content)
    return [directory / name for name in files]


def _read_directory(directory: Path, top: Path, is_left_out: LeftOut) -> Iterator[Member]:
    for path in sorted(directory.iterdir()):
        name = from_os(path.relative_to(top).as_posix())
        if path.name in IGNORED or path.suffix == ".pyc" or is_left_out(path, name):
            continue
        if path.is_symlink():
            raise MpotaError(f"'{path}' is a link, boards have none")
        if path.is_dir():
            yield Member(name, b"", is_directory=True)
            yield from _read_directory(path, top, is_left_out)
        elif path.is_file():
            yield Member(name, _public(path.read_bytes(), path))
        else:
            raise MpotaError(f"'{path}' is no regular file")


def _public(data: bytes, path: Path) -> bytes:
    """``data``, the content of ``path``. Raises MpotaError for a private key: whoever gets a
    release could sign with it."""
    if is_private_key(data):
        raise MpotaError(f"'{path}' holds a private key: it is not packed", "keys stay at home")
    return data
