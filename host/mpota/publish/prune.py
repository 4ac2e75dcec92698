"""Files of a store that nobody can need any more: found, and removed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from mpota.errors import UsageError
from mpota.formats.channel import CHANNEL_SUFFIX
from mpota.formats.manifest import Manifest
from mpota.formats.signature import PublicKey
from mpota.publish.channels import Current, get_channel
from mpota.publish.released import FOLDER, find_published, read_manifest, signature_path
from mpota.publish.store import Listed, Store


def all_channels(store: Store, trusted: tuple[PublicKey, ...]) -> list[Current]:
    """Every channel in a store. Raises MpotaError for one that no key has signed: what it needs
    cannot be told.
    """
    names = [listed.path for listed in store.list("") if listed.path.endswith(CHANNEL_SUFFIX)]
    return [get_channel(store, name.removesuffix(CHANNEL_SUFFIX), trusted) for name in names]


@dataclass(frozen=True)
class Leftovers:
    """``files`` can go; ``kept`` is how many stay."""

    files: tuple[Listed, ...]
    kept: int


def find_leftovers(
    store: Store,
    trusted: tuple[PublicKey, ...],
    keep: int,
    older: timedelta,
    now: datetime,
) -> Leftovers:
    """Files that no channel leads to, that are not among the ``keep`` newest releases of their
    hardware (later ones may want to be told as a difference from these), and that were changed
    longer ago than ``older``: younger ones may be of a release that is being published.

    Raises MpotaError for channels and manifests that boards would refuse.
    """
    channels = all_channels(store, trusted)
    if not channels:
        raise UsageError(f"{store.name} has no channel: nothing is removed")
    needed = set(_needed(store, channels, keep, trusted))
    listed = list(store.list(FOLDER))
    files = tuple(one for one in listed if one.path not in needed and one.changed <= now - older)
    return Leftovers(files, len(listed) - len(files))


def _needed(
    store: Store, channels: list[Current], keep: int, trusted: tuple[PublicKey, ...]
) -> Iterator[str]:
    for current in channels:
        for entry in current.channel.releases:
            yield from _files(entry.manifest, read_manifest(store, entry.manifest, trusted))
    for name in dict.fromkeys(current.channel.name for current in channels):
        by_hardware: dict[tuple[str | None, str | None], list[tuple[str, Manifest]]] = {}
        for path, manifest in find_published(store, name, trusted):
            by_hardware.setdefault((manifest.chip, manifest.board), []).append((path, manifest))
        for found in by_hardware.values():
            found.sort(key=lambda pair: pair[1].counter, reverse=True)
            for path, manifest in found[:keep]:
                yield from _files(path, manifest)


def _files(path: str, manifest: Manifest) -> Iterator[str]:
    yield path
    yield signature_path(path)
    for form in manifest.forms:
        yield f"{FOLDER}/{form.url}"


def remove(store: Store, files: Leftovers) -> None:
    """Manifests first: what is left of a release without one is never taken for one."""
    for listed in sorted(files.files, key=lambda one: not one.path.endswith(".json")):
        store.delete(listed.path)


def highest_counter(store: Store, name: str, trusted: tuple[PublicKey, ...]) -> int:
    """The highest counter of a product in all channels of a store, 0 if there is none.

    Raises MpotaError for a channel that no key has signed: a counter that a stranger chose, made
    part of a release, could be the last one that boards ever take.
    """
    channels = [found.channel for found in all_channels(store, trusted)]
    counters = (e.counter for channel in channels if channel.name == name for e in channel.releases)
    return max(counters, default=0)
