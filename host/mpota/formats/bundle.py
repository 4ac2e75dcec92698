"""Bundles: a release in one ustar file that a board can take as it streams by.

Members, in this order and no others::

    manifest.json    the manifest (formats/manifest.py), first, so that a board can judge it
    manifest.sig     optional: its signature, one sector of 4096 bytes (formats/signature.py)
    ...              every form of every payload that has a member name, as the manifest has them

Sent to a board that has some of its files, ``files.tar.thin`` may stand in place of ``files.tar``:
formats/thin.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from mpota.errors import MpotaError
from mpota.formats.chain import head_first, read_chain
from mpota.formats.frames import Frames, decompress, pieces
from mpota.formats.manifest import CHAINED, MAX_SIZE, Form, Manifest, Payload
from mpota.formats.payloads import FILES, KINDS
from mpota.formats.tar import Member, read_tar, read_tree, write_tar
from mpota.formats.thin import SUFFIX, make_thin

MANIFEST_NAME = "manifest.json"
SIGNATURE_NAME = "manifest.sig"

_MAX_CONTENT_SIZE = 64 * 1024 * 1024  # of a decoded payload: no board of MicroPython has more


def is_bundle(data: bytes) -> bool:
    """Whether a file that starts with ``data`` looks like a bundle, by its first member's name."""
    return data.startswith(MANIFEST_NAME.encode() + b"\0")


@dataclass(frozen=True)
class Bundle:
    """``manifest_bytes`` are exactly those of the member; ``members`` maps its payloads' names."""

    manifest: Manifest
    manifest_bytes: bytes
    signature: bytes | None
    members: Mapping[str, bytes]

    @classmethod
    def from_bytes(cls, data: bytes) -> Bundle:
        """Raises MpotaError for damage and for members that are not those of the manifest."""
        members = list(read_tar(data, "bundle"))
        if not members or members[0].name != MANIFEST_NAME:
            raise MpotaError(f"bundle does not start with {MANIFEST_NAME}")
        if len(members[0].data) > MAX_SIZE:
            raise MpotaError(f"manifest is {len(members[0].data):,} bytes, at most {MAX_SIZE:,}")
        manifest = Manifest.from_bytes(members[0].data)
        signature = None
        if len(members) > 1 and members[1].name == SIGNATURE_NAME:
            signature = members.pop(1).data
        bundle = cls(
            manifest,
            members[0].data,
            signature,
            {member.name: member.data for member in members[1:]},
        )
        expected = [form.member for form in manifest.forms if form.member]
        found = [member.name for member in members[1:]]
        if found != expected or any(member.is_directory for member in members):
            raise MpotaError(
                f"bundle has members {', '.join(found) or 'none'}; its manifest has "
                f"{', '.join(expected) or 'none'}"
            )
        bundle.check()
        return bundle

    def check(self) -> None:
        """Raises MpotaError if a member is not what the manifest says."""
        for form in self.manifest.forms:
            if form.member is not None:
                form.check(self.members[form.member], f"member '{form.member}'")
        for payload in self.manifest.payloads:
            for form in payload.forms:
                if form.member and form.encoding in (None, "deflate"):
                    _check_content(form, payload, self.members[form.member])
                elif form.member:
                    decode(form, payload, self.members[form.member], f"member '{form.member}'")

    def to_bytes(self) -> bytes:
        members = [Member(MANIFEST_NAME, self.manifest_bytes)]
        if self.signature is not None:
            members.append(Member(SIGNATURE_NAME, self.signature))
        members += [Member(name, data) for name, data in self.members.items()]
        return write_tar(members)

    def thinned(self, there: Collection[bytes]) -> bytes | None:
        """The bundle for a board that has the files with the ids ``there`` (formats/thin.py), under
        the same manifest and signature; None where nothing is saved by that.
        """
        form, archive = self._files()
        thin = make_thin(archive, there) if archive else None
        if form is None or thin is None or len(thin) >= form.size:
            return None
        members = {
            key + SUFFIX if key == form.member else key: thin if key == form.member else data
            for key, data in self.members.items()
        }
        return replace(self, members=members).to_bytes()

    @property
    def files(self) -> dict[str, bytes]:
        """The files of its ``files`` payload, by their paths; none where it has no such payload, or
        not in a single form that the desk can decode."""
        _, archive = self._files()
        members = read_tree(archive) if archive else ()
        return {member.name: member.data for member in members if not member.is_directory}

    def _files(self) -> tuple[Form | None, bytes | None]:
        """The only form of the ``files`` payload, and its content."""
        for payload in self.manifest.payloads:
            if payload.kind == FILES and len(payload.forms) == 1 and payload.forms[0].member:
                (form,) = payload.forms
                name = str(form.member)
                return form, decode(form, payload, self.members[name], f"member '{name}'")
        return None, None


def decode(form: Form, payload: Payload, data: bytes, what: str) -> bytes | None:
    """The content that ``data``, a form of a payload, gives by itself; None if it cannot.

    Raises MpotaError, naming ``what``, if it is damaged or another content than the manifest says.
    """
    if form.encoding not in (None, "deflate", *CHAINED):
        return None
    if form.chain is not None:
        try:
            data = read_chain(data, bytes.fromhex(form.chain))
        except MpotaError as error:
            raise MpotaError(f"{what}: {error}") from None
    if form.encoding in ("deflate", "chained-deflate"):
        frames = Frames.from_bytes(data)
        if frames.size != payload.size or frames.size > _MAX_CONTENT_SIZE:
            raise MpotaError(
                f"{what} decompresses to {frames.size:,} bytes, its manifest says "
                f"{payload.size:,}, at most {_MAX_CONTENT_SIZE:,}"
            )
        data = decompress(frames)
    if form.chain is not None:
        data = head_first(data)
    if form.encoding is not None:
        Form(payload.size, payload.sha256).check(data, f"{what}, decoded,")
    return data


def _check_content(form: Form, payload: Payload, data: bytes) -> None:
    """Raises MpotaError if a member gives by itself another content than the payload's, or one
    that a board would refuse. What is not needed whole is not held whole.
    """
    kind = KINDS[payload.kind]
    if form.encoding is None:
        kind.check(data)
        return
    frames = Frames.from_bytes(data)
    what = f"member '{form.member}', decompressed,"
    plain = Form(payload.size, payload.sha256, form.member)
    if kind.is_checked_whole:
        content = decompress(frames)
        plain.check(content, what)
        kind.check(content)
        return
    if frames.size != plain.size:
        raise MpotaError(f"{what} is {frames.size:,} bytes, its manifest says {plain.size:,}")
    digest = hashlib.sha256()
    for piece in pieces(frames):
        digest.update(piece)
    if (found := digest.hexdigest()) != plain.sha256:
        raise MpotaError(
            f"{what} has SHA-256 {found[:16]}..., its manifest says {plain.sha256[:16]}..."
        )
