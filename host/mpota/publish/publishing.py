"""Publishing: planned from what is in the store, signed, carried out in the order that leaves
nothing half-published wherever it ends.

Payloads, manifests and signatures have names whose content never changes and come first; nobody
knows of them yet. The channel file comes last, and only if nobody else has changed it meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Protocol

from mpota.errors import MpotaError, UsageError
from mpota.formats.bundle import Bundle
from mpota.formats.channel import MAX_SPREAD, SHARES, Channel, ChannelEntry, parse_time
from mpota.formats.manifest import Manifest
from mpota.formats.signature import PublicKey, parse_sector
from mpota.publish.channels import (
    MAX_FILE,
    Current,
    channel_path,
    entry_of,
    read_channel,
    reissued,
    with_entry,
)
from mpota.publish.released import (
    FOLDER,
    Released,
    find_bases,
    read_manifest,
    signature_path,
    take_apart,
)
from mpota.publish.store import Store
from mpota.release.signing import PrivateKey, check_signature, sign, sign_line
from mpota.units import SECTOR_SIZE


@dataclass(frozen=True)
class Upload:
    """A file that never changes. ``what``: for people."""

    path: str
    data: bytes


@dataclass(frozen=True)
class Publication:
    """What makes ``channel`` the next state of the store: ``former`` is the present one.

    Manifests are among the uploads; their signatures are made when it is carried out.
    """

    uploads: tuple[Upload, ...]
    channel: Channel
    former: Current | None

    @property
    def manifests(self) -> tuple[Upload, ...]:
        return tuple(upload for upload in self.uploads if upload.path.endswith(".json"))


@dataclass(frozen=True)
class Wishes:
    """How releases are to come into a channel. ``share``: of 10000; ``spread``: in seconds."""

    channel: str = "stable"
    share: int = SHARES
    spread: int = 0
    begins: datetime | None = None
    days: int | None = None
    from_version: str | None = None
    deltas: int = 0


class Signatures(Protocol):
    """Where signatures come from: keys at hand, or files that somebody else has made."""

    def of_manifest(self, path: str, data: bytes) -> bytes:
        """The sector for a manifest, whose path in the store is ``path``."""

    def of_channel(self, line: bytes) -> bytes:
        """The signed file."""

    @property
    def public(self) -> tuple[PublicKey, ...]:
        """The public keys of these signatures."""


@dataclass(frozen=True)
class Keys:
    """Private keys at hand."""

    private: tuple[PrivateKey, ...]

    def of_manifest(self, path: str, data: bytes) -> bytes:
        return sign(data, self.private)

    def of_channel(self, line: bytes) -> bytes:
        return sign_line(line, self.private)

    @property
    def public(self) -> tuple[PublicKey, ...]:
        return tuple(key.public for key in self.private)


def utc_now() -> datetime:
    return datetime.now(timezone.utc).replace(microsecond=0)


def plan_releases(
    store: Store,
    bundles: Iterable[Bundle],
    wishes: Wishes,
    trusted: tuple[PublicKey, ...],
    on_release: Callable[[Released], None] = lambda release: None,
) -> Publication | None:
    """What brings these releases into a channel; None if all of them are in it already.

    Raises MpotaError for releases of another product, and for those that no board would take.
    """
    former = read_channel(store, wishes.channel, trusted)
    now = utc_now()
    entries = former.channel.releases if former else ()
    name = former.channel.name if former else None
    uploads: list[Upload] = []
    is_new = False
    for bundle in bundles:
        manifest = replace(bundle.manifest, from_version=_from_version(bundle.manifest, wishes))
        name = name or manifest.name
        if manifest.name != name:
            raise MpotaError(f"the channel is for '{name}', this is a release of '{manifest.name}'")
        if _is_there(store, entries, manifest, trusted):
            continue
        bases = find_bases(store, manifest, wishes.deltas, trusted)
        if manifest.expires is not None and parse_time(manifest.expires) <= now:
            raise MpotaError(
                f"{name} {manifest.version} expired on {manifest.expires}: no board would take it"
            )
        release = Released.of(manifest, take_apart(bundle, bases))
        on_release(release)
        entries = with_entry(entries, _entry(release, wishes, now))
        uploads += _uploads(release)
        is_new = True
    if not is_new:
        return None
    assert name is not None
    channel = reissued(
        former.channel if former else None, name, wishes.channel, entries, now, wishes.days
    )
    channel.to_line()  # says what is wrong with it
    return Publication(tuple(dict.fromkeys(uploads)), channel, former)


def _from_version(manifest: Manifest, wishes: Wishes) -> str | None:
    return wishes.from_version or manifest.from_version


def _entry(release: Released, wishes: Wishes, now: datetime) -> ChannelEntry:
    if not 0 <= wishes.spread <= MAX_SPREAD:
        raise UsageError(f"a spread of {wishes.spread:,} s: at most {MAX_SPREAD // 86400} days")
    begins = wishes.begins or (now if wishes.spread else None)
    return entry_of(release, wishes.share, wishes.spread, begins)


def _uploads(release: Released) -> Iterator[Upload]:
    for name, data in release.files.items():
        yield Upload(f"{FOLDER}/{name}", data)
    yield Upload(release.path, release.manifest_bytes)


def _is_there(
    store: Store,
    entries: Iterable[ChannelEntry],
    manifest: Manifest,
    trusted: tuple[PublicKey, ...],
) -> bool:
    """Whether a channel has this release already. Raises MpotaError if it has another one in its
    place: boards tell releases by their counters.
    """
    place = (manifest.counter, manifest.chip, manifest.board)
    entry = next((e for e in entries if (e.counter, e.chip, e.board) == place), None)
    if entry is None:
        return False
    there = read_manifest(store, entry.manifest, trusted)
    if (there.version, _contents(there)) != (manifest.version, _contents(manifest)):
        raise MpotaError(
            f"the channel has another release with counter {manifest.counter}: {there.version}",
            "mpota bundle gives each release a counter of its own",
        )
    return True


def _contents(manifest: Manifest) -> list[tuple[str, str | None, str]]:
    return [(payload.kind, payload.partition, payload.sha256) for payload in manifest.payloads]


# What `on_step` below is told of a file.
SENT, THERE = "sent", "there"
OnStep = Callable[[str, str, int], None]


def carry_out(
    store: Store, plan: Publication, signatures: Signatures, on_step: OnStep = lambda *step: None
) -> None:
    """Send what is not there yet, the channel file last. Safe to be repeated after any end.

    Raises MpotaError if a name has other content than it should, and if somebody else has
    published meanwhile: then nothing of this is visible to boards.
    """
    files = list(_all_files(store, plan, signatures))
    for path, data in files:
        on_step(_send(store, path, data), path, len(data))
    data = signatures.of_channel(plan.channel.to_line())
    path = channel_path(plan.channel.channel)
    _replace(store, path, data, plan.former)
    on_step(SENT, path, len(data))
    _send_again(store, files, on_step)


def _all_files(
    store: Store, plan: Publication, signatures: Signatures
) -> Iterator[tuple[str, bytes]]:
    """All files to upload; each manifest is followed by its signature."""
    for upload in plan.uploads:
        yield upload.path, upload.data
        if upload in plan.manifests:
            path = signature_path(upload.path)
            there = store.get(path, SECTOR_SIZE)
            if there and _is_by(upload.data, there.data, signatures.public):
                yield path, there.data
            else:
                yield path, signatures.of_manifest(upload.path, upload.data)


def _is_by(content: bytes, sector: bytes, keys: tuple[PublicKey, ...]) -> bool:
    """Whether a signature is valid, and by these keys, no more and no less."""
    try:
        check_signature(content, sector, keys)
        return {block.key for block in parse_sector(sector)} == set(keys)
    except MpotaError:
        return False


def _send(store: Store, path: str, data: bytes) -> str:
    if store.create(path, data):
        return SENT
    if not store.holds(path, data):
        raise MpotaError(
            f"{store.name}: '{path}' is there with other content",
            "somebody has changed it: have it removed, and look who may write there",
        )
    return THERE


def _replace(store: Store, path: str, data: bytes, former: Current | None) -> None:
    if store.replace(path, data, former.tag if former else None):
        return
    found = store.get(path, MAX_FILE)
    if found is not None and found.data == data:
        return  # the first attempt had written it, and only the answer was lost
    raise MpotaError(
        f"{store.name}: somebody else has changed '{path}' meanwhile; boards see theirs",
        "the same command again starts from it",
    )


def _send_again(store: Store, files: Iterable[tuple[str, bytes]], on_step: OnStep) -> None:
    """Send files again that a `prune` removed before the channel file named them."""
    files = tuple(files)
    if not files:
        return
    there = {listed.path for listed in store.list(FOLDER)}
    for path, data in files:
        if path not in there:
            on_step(_send(store, path, data), path, len(data))
