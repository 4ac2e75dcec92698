"""Signing where the key is, publishing where the network is: a directory goes there and back.

It holds what is to be published under the names that it will have, the channel file without its
signatures, and a note of the state that it follows on. What comes back is checked like anything
that somebody else could have changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from mpota.errors import MpotaError, UsageError
from mpota.formats.channel import Channel, SignedLine, check_name
from mpota.formats.fields import DIGEST, Fields, load_object
from mpota.formats.manifest import Manifest
from mpota.formats.signature import PublicKey
from mpota.publish.channels import channel_path, read_channel
from mpota.publish.publishing import Publication, Upload
from mpota.publish.released import FOLDER, signature_path
from mpota.publish.store import Store
from mpota.release.signing import PrivateKey, check_line, check_signature, sign, sign_line
from mpota.storage.file import read_file, write_file

NOTE = "publish.json"
_MAX_NOTE = 1024


@dataclass(frozen=True)
class ToSign:
    """One file of such a directory that a signature is for, and what it says."""

    path: Path
    content: Manifest | Channel


def stage(directory: Path, plan: Publication) -> list[Path]:
    """Write what is to be signed, and what goes with it. The files that want a signature.

    Raises UsageError if the directory has files in it.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(f"'{directory}' is there, and not an empty directory")
    for upload in plan.uploads:
        _write(directory / upload.path, upload.data)
    former = sha256(plan.former.data).hexdigest() if plan.former else None
    note = {"channel": plan.channel.channel} | ({"former": former} if former else {})
    _write(directory / NOTE, json.dumps(note).encode() + b"\n")
    channel = directory / channel_path(plan.channel.channel)
    _write(channel, plan.channel.to_line())
    return [*(directory / upload.path for upload in plan.manifests), channel]


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write '{path}': {error.strerror}") from None
    write_file(path, data)


def is_staged(path: Path) -> bool:
    return (path / NOTE).is_file()


def to_sign(directory: Path) -> Iterator[ToSign]:
    """The files to sign, manifests first. Raises MpotaError for a file of another kind."""
    for path in sorted((directory / FOLDER).glob("*.json")):
        yield ToSign(path, Manifest.from_bytes(read_file(path)))
    path = directory / channel_path(_read_note(directory)[0])
    yield ToSign(path, read_line(read_file(path))[1])


def read_line(data: bytes) -> tuple[bytes, Channel]:
    """The line of a channel file that is signed already, or not yet. Raises MpotaError."""
    line = data.partition(b"\n")[0] + b"\n"
    if len(data) > len(line):
        line = SignedLine.from_bytes(data).line
    return line, Channel.from_line(line)


def sign_staged(directory: Path, keys: tuple[PrivateKey, ...]) -> list[Path]:
    """Sign all files to sign; returns the files that were written."""
    written = []
    for item in list(to_sign(directory)):
        data = read_file(item.path)
        if isinstance(item.content, Channel):
            write_file(item.path, sign_line(read_line(data)[0], keys))
            written.append(item.path)
        else:
            written.append(Path(signature_path(str(item.path))))
            write_file(written[-1], sign(data, keys))
    return written


@dataclass(frozen=True)
class Staged:
    """Signatures that were made elsewhere."""

    directory: Path
    public: tuple[PublicKey, ...]
    channel: bytes

    def of_manifest(self, path: str, data: bytes) -> bytes:
        signature = read_file(self.directory / signature_path(path))
        check_signature(data, signature, self.public)
        return signature

    def of_channel(self, line: bytes) -> bytes:
        return self.channel


def read_staged(
    directory: Path, store: Store, trusted: tuple[PublicKey, ...]
) -> tuple[Publication, Staged] | None:
    """What came back, as a plan; None if the store has it already.

    Raises MpotaError if something in it is not signed, or not what was signed; and if the store
    is no longer in the state that it follows on.
    """
    name, former = _read_note(directory)
    path = directory / channel_path(name)
    data = read_file(path)
    try:
        if data.endswith(b"\n") and data.count(b"\n") == 1:
            raise MpotaError("not signed yet")
        line, _ = check_line(data, trusted, path.name)
    except MpotaError as error:
        raise MpotaError(f"{path}: {error}", f"mpota sign {directory} --key KEY") from None
    channel = Channel.from_line(line)
    public = tuple(block.key for block in SignedLine.from_bytes(data).blocks)
    plan = Publication(
        tuple(_uploads(directory, channel)), channel, read_channel(store, name, trusted)
    )
    staged = Staged(directory, public, data)
    for upload in plan.manifests:
        staged.of_manifest(upload.path, upload.data)
    if plan.former and plan.former.data == data:
        return None
    found = sha256(plan.former.data).hexdigest() if plan.former else None
    if found != former:
        raise MpotaError(
            f"{store.name}: somebody else has changed '{path.name}' since this was made",
            "make it anew by --unsigned",
        )
    return plan, staged


def _uploads(directory: Path, channel: Channel) -> Iterator[Upload]:
    """The files beside the channel file that its entries lead to, and no others: payloads first."""
    for entry in channel.releases:
        manifest_path = directory / entry.manifest
        with suppress(ValueError):
            manifest_path = manifest_path.resolve().relative_to(directory.resolve())
        if str(manifest_path) != entry.manifest or not (directory / entry.manifest).is_file():
            continue  # it was published before
        data = read_file(directory / entry.manifest)
        if sha256(data).hexdigest() != entry.sha256:
            raise MpotaError(f"'{entry.manifest}' is not the one that the channel file names")
        for form in Manifest.from_bytes(data).forms:
            if form.url is None or "/" in form.url:
                raise MpotaError(f"'{entry.manifest}' names '{form.url or form.member}'")
            content = read_file(directory / FOLDER / form.url)
            form.check(content, f"'{form.url}'")
            yield Upload(f"{FOLDER}/{form.url}", content)
        yield Upload(entry.manifest, data)


def _read_note(directory: Path) -> tuple[str, str | None]:
    fields = Fields(load_object(read_file(directory / NOTE), _MAX_NOTE, NOTE), NOTE)
    name, former = fields.take("channel", str), fields.optional_text("former", DIGEST)
    fields.end()
    return check_name(name), former
