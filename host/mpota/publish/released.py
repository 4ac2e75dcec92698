"""One release on its way into a store: a bundle taken apart into files that can stand there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256

from mpota.errors import MpotaError, UsageError
from mpota.formats.bundle import Bundle, decode, is_bundle
from mpota.formats.manifest import MAX_SIZE, Form, Manifest, Payload
from mpota.formats.payloads import APP, KINDS
from mpota.formats.signature import PublicKey
from mpota.publish.store import MAX_OBJECT_SIZE, Store
from mpota.release.build import Content
from mpota.release.signing import check_signature
from mpota.units import SECTOR_SIZE

FOLDER = "releases"
_HASH_SIZE = 16  # hexadecimal digits of a SHA-256 in the name of a file
_UNFIT = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Released:
    """A release as it is published: ``manifest`` has URLs, ``files`` their bytes by name."""

    manifest: Manifest
    manifest_bytes: bytes
    files: dict[str, bytes]

    @property
    def digest(self) -> str:
        """What a channel knows the manifest by, in hex."""
        return sha256(self.manifest_bytes).hexdigest()

    @property
    def path(self) -> str:
        """Of the manifest, in the store; that of its signature ends in ``.sig``."""
        return f"{FOLDER}/{_stem(self.manifest)}-{self.digest[:_HASH_SIZE]}.json"

    @property
    def signature_path(self) -> str:
        return signature_path(self.path)

    @classmethod
    def of(cls, manifest: Manifest, contents: Iterable[Published]) -> Released:
        """Raises MpotaError if the manifest is larger than boards take."""
        contents = tuple(contents)
        named = replace(manifest, payloads=tuple(content.payload for content in contents))
        files = {name: data for content in contents for name, data in content.files.items()}
        return cls(named, named.to_bytes(), files)


@dataclass(frozen=True)
class Published:
    """One payload, with the bytes of its forms by the names that they have in the store."""

    payload: Payload
    files: dict[str, bytes]

    def with_form(self, form: Form, member: str, data: bytes) -> Published:
        name = public_name(member, data)
        forms = (*self.payload.forms, replace(form, member=None, url=name))
        ordered = sorted(forms, key=lambda form: (form.encoding is None, form.size))
        return Published(replace(self.payload, forms=tuple(ordered)), self.files | {name: data})


def public_name(member: str, data: bytes) -> str:
    """A name that no other bytes can have: it holds their digest."""
    return f"{sha256(data).hexdigest()[:_HASH_SIZE]}-{_UNFIT.sub('-', member)}"


def signature_path(manifest_path: str) -> str:
    return manifest_path.removesuffix(".json") + ".sig"


def _stem(manifest: Manifest) -> str:
    words = (manifest.name, manifest.version, manifest.chip or "any")
    return _UNFIT.sub("-", "-".join(words))


def read_bundle(data: bytes, name: str, trusted: tuple[PublicKey, ...] | None) -> Bundle:
    """A bundle that is fit to be published: it must be whole, and may not be signed by somebody
    else than ``trusted`` (None: whoever it is). Raises MpotaError otherwise.
    """
    if not is_bundle(data):
        raise MpotaError(f"{name} is no bundle", "mpota bundle makes one")
    found = Bundle.from_bytes(data)
    if not found.manifest.payloads:
        raise UsageError(f"{name} has no payloads: what is published is what boards can install")
    if any(form.member is None for form in found.manifest.forms):
        raise MpotaError(f"{name} has payloads that are elsewhere: a bundle with all of them")
    if found.signature is not None and trusted is not None:
        try:
            check_signature(found.manifest_bytes, found.signature, trusted)
        except MpotaError as error:
            raise MpotaError(f"{name}: {error}", f"mpota sign {name} --key KEY") from None
    return found


def take_apart(bundle: Bundle, bases: Iterable[bytes]) -> Iterator[Published]:
    """Its payloads, each in the forms that the bundle has, as it is, and for an app as the
    differences from ``bases``.
    """
    for payload in bundle.manifest.payloads:
        published = Published(replace(payload, forms=()), {})
        content = None
        for form in payload.forms:
            assert form.member is not None
            data = bundle.members[form.member]
            published = published.with_form(form, form.member, data)
            content = content or decode(form, payload, data, f"member '{form.member}'")
            if form.encoding is None:
                content = data
        if content is None:
            raise MpotaError(f"the {payload.kind} of the release is there as a difference only")
        if not KINDS[payload.kind].may_chain:
            published = _with_plain(published, _member(payload), content)
        if payload.kind == APP:
            published = _with_deltas(published, content, bases)
        yield published


def _member(payload: Payload) -> str:
    """The member name of a payload's content, without the ending of an encoding."""
    name = payload.forms[-1].member or payload.kind
    return name.removesuffix(".deflate")


def _with_plain(published: Published, member: str, content: bytes) -> Published:
    """The payload with a plain form, for boards that decode nothing."""
    if any(form.encoding is None for form in published.payload.forms):
        return published
    return published.with_form(Form(len(content), sha256(content).hexdigest()), member, content)


def _with_deltas(published: Published, content: bytes, bases: Iterable[bytes]) -> Published:
    there = {form.base for form in published.payload.forms}
    for old in bases:
        if sha256(old).hexdigest() in (published.payload.sha256, *there):
            continue
        for found in Content(APP, "app.bin", content).with_delta(old).encoded:
            if found.base not in there:
                published = published.with_form(found.form("member"), found.member, found.data)
    return published


def find_published(
    store: Store, name: str, trusted: tuple[PublicKey, ...]
) -> Iterator[tuple[str, Manifest]]:
    """Paths and manifests of the releases of a product that one of the keys has signed.

    What anybody else has put there is left out.
    """
    start = f"{FOLDER}/{_UNFIT.sub('-', name)}-"
    for listed in store.list(FOLDER):
        if not (listed.path.startswith(start) and listed.path.endswith(".json")):
            continue
        try:
            manifest = read_manifest(store, listed.path, trusted)
        except MpotaError as error:
            if isinstance(error, UsageError):  # the store failed, not a file in it
                raise
            continue
        if manifest.name == name:
            yield listed.path, manifest


def read_manifest(store: Store, path: str, trusted: tuple[PublicKey, ...]) -> Manifest:
    """A manifest in the store. Raises MpotaError if it is not there, or not signed by a key."""
    found = store.get(path, MAX_SIZE)
    signature = store.get(signature_path(path), SECTOR_SIZE)
    if found is None or signature is None:
        missing = path if found is None else signature_path(path)
        raise MpotaError(f"{store.name}: there is no '{missing}'")
    check_signature(found.data, signature.data, trusted)
    return Manifest.from_bytes(found.data)


def read_form(store: Store, form: Form) -> bytes:
    """The bytes of a form beside its manifest. Raises MpotaError if they are not there, or
    others than the manifest says.
    """
    if form.url is None or "/" in form.url:
        raise MpotaError(f"'{form.url or form.member}' is not beside the manifest")
    path = f"{FOLDER}/{form.url}"
    found = store.get(path, min(form.size, MAX_OBJECT_SIZE))
    if found is None:
        raise MpotaError(f"{store.name}: there is no '{path}'")
    form.check(found.data, f"'{path}'")
    return found.data


def find_bases(
    store: Store, manifest: Manifest, count: int, trusted: tuple[PublicKey, ...]
) -> list[bytes]:
    """The apps of the ``count`` newest releases before this one, for the same boards."""
    if not count or not any(payload.kind == APP for payload in manifest.payloads):
        return []
    older = [
        found
        for _, found in find_published(store, manifest.name, trusted)
        if (found.chip, found.board) == (manifest.chip, manifest.board)
        and found.counter < manifest.counter
    ]
    older.sort(key=lambda found: found.counter, reverse=True)
    plain = (form for found in older for form in _plain_apps(found))
    newest = list({form.sha256: form for form in plain}.values())[:count]
    return [read_form(store, form) for form in newest]


def _plain_apps(manifest: Manifest) -> Iterator[Form]:
    for payload in manifest.payloads:
        if payload.kind == APP:
            yield from (form for form in payload.forms if form.encoding is None)
