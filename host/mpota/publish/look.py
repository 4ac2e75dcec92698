"""What boards will do with a channel, and whether all that it names is as it was signed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256

from mpota.errors import MpotaError, UsageError
from mpota.formats.bundle import decode
from mpota.formats.channel import SHARES, ChannelEntry, format_time, parse_time
from mpota.formats.manifest import MAX_SIZE, Form, Manifest, Payload, version_key
from mpota.formats.payloads import APP
from mpota.formats.signature import PublicKey
from mpota.publish.channels import Current
from mpota.publish.fresh import read_fresh
from mpota.publish.released import find_published, read_form, read_manifest
from mpota.publish.store import Store
from mpota.units import SECTOR_SIZE

OLDER = "older"  # than all that is published: a version that the store does not know
_WARN_BEFORE = timedelta(days=7)


@dataclass(frozen=True)
class Prospect:
    """What boards of one kind of hardware that run one version will do.

    ``share``: of 10000; the others go by the next outcome. ``fetches``: bytes, the smallest form
    of each payload. ``entry`` None: they stay with what they have.
    """

    chip: str | None
    board: str | None
    runs: str
    entry: ChannelEntry | None
    share: int
    fetches: int | None = None


def outcomes(
    current: Current, manifests: dict[str, Manifest], published: list[Manifest]
) -> Iterator[Prospect]:
    """For each kind of hardware and each version that its boards may run, the newest first.

    ``manifests``: those of the entries, by their paths; ``published``: all that there are.
    """
    entries = current.channel.releases
    kinds = dict.fromkeys((entry.chip, entry.board) for entry in entries)
    for chip, board in kinds:
        mine = [e for e in entries if e.chip in (None, chip) and e.board in (None, board)]
        mine.sort(key=lambda entry: entry.counter, reverse=True)
        own = [m for m in published if (m.chip, m.board) == (chip, board)]
        for installed in [*sorted(own, key=lambda m: m.counter, reverse=True), None]:
            yield from _outcomes(chip, board, mine, installed, manifests)


def _outcomes(
    chip: str | None,
    board: str | None,
    entries: list[ChannelEntry],
    installed: Manifest | None,
    manifests: dict[str, Manifest],
) -> Iterator[Prospect]:
    runs = installed.version if installed else OLDER
    left = SHARES
    for entry in entries:
        if entry.state or not _takes(entry, installed):
            continue
        share = min(entry.share, left)
        if share:
            manifest = manifests.get(entry.manifest)
            fetches = _fetched(manifest, entry, installed) if manifest else None
            yield Prospect(chip, board, runs, entry, entry.share, fetches)
        left = 0 if entry.share == SHARES else left
        if not left:
            return
    yield Prospect(chip, board, runs, None, left)


def _takes(entry: ChannelEntry, installed: Manifest | None) -> bool:
    if installed is None:
        return entry.from_version is None
    if entry.from_version and version_key(installed.version) < version_key(entry.from_version):
        return False
    return entry.counter > installed.counter


def _fetched(manifest: Manifest, entry: ChannelEntry, installed: Manifest | None) -> int:
    """Bytes: manifest, signature, and the smallest form of each payload."""
    payloads = installed.payloads if installed else ()
    base = next((payload.sha256 for payload in payloads if payload.kind == APP), None)
    sizes = [
        min((form.size for form in payload.forms if form.base in (None, base)), default=0)
        for payload in manifest.payloads
    ]
    return entry.size + SECTOR_SIZE + sum(sizes)


@dataclass(frozen=True)
class Look:
    """Findings: boards refuse the channel for ``faults``; ``warnings`` are for the publisher."""

    current: Current
    outcomes: tuple[Prospect, ...]
    files: int
    size: int
    faults: list[str]
    warnings: tuple[str, ...]


def look(store: Store, current: Current, trusted: tuple[PublicKey, ...], now: datetime) -> Look:
    """Read and check all that a channel leads to. Raises UsageError if the store fails."""
    check = _Check(store, current, trusted)
    for entry in current.channel.releases:
        check.entry(entry)
        manifest = check.manifests.get(entry.manifest)
        expires = manifest.expires if manifest else None
        if expires is not None and parse_time(expires) <= now:
            check.faults.append(f"{entry.version}: its manifest expired on {expires}")
    published = [manifest for _, manifest in find_published(store, current.channel.name, trusted)]
    found = tuple(outcomes(current, check.manifests, published))
    ends = current.channel.expires
    warnings: tuple[str, ...] = ()
    if ends <= now:
        check.faults.append(f"it expired on {format_time(ends)}")
    elif ends - now < _WARN_BEFORE:
        warnings = (f"it expires on {format_time(ends)}: boards start nothing from then on",)
    if current.channel.fresh_key:
        warnings = (*warnings, *_fresh_warnings(store, current, now))
    return Look(current, found, len(check.sizes), sum(check.sizes.values()), check.faults, warnings)


class _Check:
    """Reads the files that entries name, and collects what is wrong with them."""

    def __init__(self, store: Store, current: Current, trusted: tuple[PublicKey, ...]) -> None:
        self._store = store
        self._name = current.channel.name
        self._trusted = trusted
        self.manifests: dict[str, Manifest] = {}
        self.sizes: dict[str, int] = {}  # of payloads, by their URLs
        self.faults: list[str] = []

    def entry(self, entry: ChannelEntry) -> None:
        with self._collecting(entry):
            manifest = read_entry(self._store, entry, self._name, self._trusted)
            self.manifests[entry.manifest] = manifest
            for payload in manifest.payloads:
                for form in payload.forms:
                    with self._collecting(entry):
                        self._form(payload, form)

    def _form(self, payload: Payload, form: Form) -> None:
        data = read_form(self._store, form)
        decode(form, payload, data, f"'{form.url}'")
        self.sizes[form.url or ""] = len(data)

    @contextmanager
    def _collecting(self, entry: ChannelEntry) -> Iterator[None]:
        try:
            yield
        except UsageError:
            raise
        except MpotaError as error:
            self.faults.append(f"{entry.version}: {error}")


def read_entry(
    store: Store, entry: ChannelEntry, name: str, trusted: tuple[PublicKey, ...]
) -> Manifest:
    """The manifest of an entry. Raises MpotaError if boards would refuse it."""
    found = store.get(entry.manifest, MAX_SIZE)
    if found is None:
        raise MpotaError(f"{store.name}: there is no '{entry.manifest}'")
    if sha256(found.data).hexdigest() != entry.sha256:
        raise MpotaError(f"{store.name}: '{entry.manifest}' is not the one that the channel names")
    manifest = read_manifest(store, entry.manifest, trusted)
    said = (entry.version, entry.counter, entry.chip, entry.board, entry.from_version)
    if said != (
        manifest.version,
        manifest.counter,
        manifest.chip,
        manifest.board,
        manifest.from_version,
    ):
        raise MpotaError("the channel says of it what its manifest does not")
    if manifest.name != name:
        raise MpotaError(f"it is a release of '{manifest.name}', the channel is for '{name}'")
    return manifest


def _fresh_warnings(store: Store, current: Current, now: datetime) -> Iterator[str]:
    try:
        found = read_fresh(store, current)
    except UsageError:
        raise
    except MpotaError as error:
        yield f"{error}: boards whose clock is set start nothing"
        return
    if found is None:
        yield "there is no fresh file: boards whose clock is set start nothing"
    elif found.fresh.sha256 != current.digest:
        yield "the fresh file is not yet of this channel file: boards wait for it"
    elif found.fresh.expires <= now:
        yield f"the fresh file expired on {format_time(found.fresh.expires)}: boards start nothing"
