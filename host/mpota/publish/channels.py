"""The channel file in a store: read as somebody whom nobody trusts could have changed it, and made
anew with a release more, or with another share.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone

from mpota.errors import MpotaError, UsageError
from mpota.formats.channel import (
    CHANNEL_SUFFIX,
    FRESH_SUFFIX,
    MAX_LINE_SIZE,
    PAUSED,
    SHARES,
    WITHDRAWN,
    Channel,
    ChannelEntry,
    check_name,
    format_time,
    line_digest,
)
from mpota.formats.fields import MAX_NUMBER
from mpota.formats.manifest import version_key
from mpota.formats.signature import BLOCK_SIZE, MAX_BLOCKS, PublicKey
from mpota.publish.released import Released
from mpota.publish.store import Store, Tag
from mpota.release.signing import check_line

MAX_FILE = MAX_LINE_SIZE + MAX_BLOCKS * BLOCK_SIZE
DEFAULT_DAYS = 30
MAX_DAYS = 3650
# The first serial is the time: above any serial of a channel of that name that was lost.
_SERIAL_EPOCH = datetime(2020, 1, 1, tzinfo=timezone.utc)
_CLOCK_ERROR = timedelta(minutes=10)


@dataclass(frozen=True)
class Current:
    """A channel as it stands in a store, signed by a trusted key."""

    channel: Channel
    data: bytes
    tag: Tag
    signer: PublicKey

    @property
    def digest(self) -> str:
        """What boards and the fresh file know it by."""
        return line_digest(self.data.partition(b"\n")[0] + b"\n").hex()


def channel_path(name: str) -> str:
    return check_name(name) + CHANNEL_SUFFIX


def fresh_path(name: str) -> str:
    return check_name(name) + FRESH_SUFFIX


def read_channel(store: Store, name: str, trusted: Iterable[PublicKey]) -> Current | None:
    """The channel ``name``, None if there is none yet.

    Raises MpotaError unless one of ``trusted`` has signed it: what is built on it would be signed.
    """
    path = channel_path(name)
    found = store.get(path, MAX_FILE)
    if found is None:
        return None
    what = f"{store.name}: {path}"
    try:
        line, signer = check_line(found.data, trusted, "channel file")
        channel = Channel.from_line(line)
    except MpotaError as error:
        raise MpotaError(f"{what}: {error}", error.hint) from None
    if channel.channel != name:
        raise MpotaError(f"{what} is the channel '{channel.channel}', put there by a wrong name")
    return Current(channel, found.data, found.tag, signer)


def get_channel(store: Store, name: str, trusted: Iterable[PublicKey]) -> Current:
    """As `read_channel`. Raises UsageError if there is none."""
    found = read_channel(store, name, trusted)
    if found is None:
        raise UsageError(
            f"{store.name} has no channel '{name}'", "mpota publish RELEASE TARGET makes one"
        )
    return found


def entry_of(release: Released, share: int, spread: int, begins: datetime | None) -> ChannelEntry:
    """What a channel says of a release. Raises MpotaError for one that boards cannot order."""
    manifest = release.manifest
    if not manifest.counter:
        raise MpotaError(f"{manifest.name} {manifest.version} has no counter: boards go by it")
    return ChannelEntry(
        manifest.version,
        manifest.counter,
        release.path,
        len(release.manifest_bytes),
        release.digest,
        chip=manifest.chip,
        board=manifest.board,
        from_version=manifest.from_version,
        share=share,
        spread=spread,
        begins=begins,
    )


def with_entry(entries: tuple[ChannelEntry, ...], new: ChannelEntry) -> tuple[ChannelEntry, ...]:
    """``entries`` with ``new``, less those that no board would take any more.

    Raises MpotaError if no board would take the new one.
    """
    for other in entries:
        if covers(other, new):
            raise MpotaError(
                f"no board would take {new.version} (counter {new.counter}): the channel has "
                f"{other.version} (counter {other.counter}) for all of them",
                "mpota bundle --channel TARGET gives a release a counter above it",
            )
    found = sorted((new, *entries), key=lambda entry: entry.counter, reverse=True)
    return tuple(entry for entry in found if not any(covers(other, entry) for other in found))


def covers(entry: ChannelEntry, other: ChannelEntry) -> bool:
    """Whether every board that could take ``other`` prefers ``entry``."""
    return (
        entry.state is None
        and entry.share == SHARES
        and entry.counter > other.counter
        and entry.chip in (None, other.chip)
        and entry.board in (None, other.board)
        and _reaches(entry.from_version, other.from_version)
    )


def _reaches(version: str | None, other: str | None) -> bool:
    """Whether boards that are new enough for ``other`` are so for ``version``."""
    if version is None:
        return True
    return other is not None and version_key(version) <= version_key(other)


def reissued(
    former: Channel | None,
    name: str,
    channel: str,
    entries: tuple[ChannelEntry, ...],
    now: datetime,
    days: int | None = None,
) -> Channel:
    """The next state of a channel. ``days``: how long it holds, else as long as the former did.

    Raises MpotaError if the clock of this machine stands before the former one's.
    """
    if former is None:
        serial = int((now - _SERIAL_EPOCH).total_seconds())
        life = timedelta(days or DEFAULT_DAYS)
        return Channel(name, channel, serial, now, now + life, entries)
    if former.issued > now + _CLOCK_ERROR:
        raise MpotaError(
            f"the channel was issued on {format_time(former.issued)}, "
            f"the clock of this machine says {format_time(now)}"
        )
    if former.serial >= MAX_NUMBER:
        raise MpotaError(
            f"serial {former.serial} is the last one", "sign by a new key, and retire this one"
        )
    issued = max(now, former.issued)
    life = timedelta(days) if days else former.expires - former.issued
    return replace(
        former,
        serial=former.serial + 1,
        issued=issued,
        expires=issued + life,
        releases=entries,
    )


@dataclass(frozen=True)
class EntryChange:
    """What is to be another: of the entries of one release; None leaves it as it is.

    ``state``: "" opens it again. ``share``: 0 to 10000; ``spread``: in seconds.
    """

    share: int | None = None
    spread: int | None = None
    begins: datetime | None = None
    state: str | None = None

    def apply(self, entry: ChannelEntry, now: datetime) -> ChannelEntry:
        """The changed entry. Boards that a larger share or a resumed one adds start from now on."""
        changed = replace(
            entry,
            share=entry.share if self.share is None else self.share,
            spread=entry.spread if self.spread is None else self.spread,
            state=entry.state if self.state is None else self.state or None,
        )
        if entry.state == WITHDRAWN and self.state in ("", PAUSED):
            raise MpotaError(
                f"{entry.version} was withdrawn, which is for ever",
                "publish it again, with a higher counter",
            )
        lets_in = changed.share > entry.share or (entry.state and not changed.state)
        if self.begins is not None:
            return replace(changed, begins=self.begins)
        if changed.spread and (lets_in or changed.spread != entry.spread):
            return replace(changed, begins=now)
        return changed


def changed(channel: Channel, version: str | None, change: EntryChange, now: datetime) -> Channel:
    """The channel with other entries of one release: of ``version``, else of the newest.

    Raises UsageError if there is no such release.
    """
    newest = max(channel.releases, key=lambda entry: entry.counter, default=None)
    chosen = version or (newest.version if newest else None)
    versions = [entry.version for entry in channel.releases]
    if chosen not in versions:
        raise UsageError(
            f"the channel has no release {chosen or ''}".rstrip(),
            f"it has {', '.join(dict.fromkeys(versions))}" if versions else None,
        )
    return replace(
        channel,
        releases=tuple(
            change.apply(entry, now) if entry.version == chosen else entry
            for entry in channel.releases
        ),
    )
