"""The fresh file: that the channel file of today is that of today, said again and again by a key
that can say nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from mpota.errors import MpotaError
from mpota.formats.channel import MAX_FRESH_LINE, Fresh, SignedLine, format_time
from mpota.formats.signature import BLOCK_SIZE, MAX_BLOCKS, PublicKey
from mpota.publish.channels import Current, fresh_path
from mpota.publish.store import Store, Tag
from mpota.release.signing import PrivateKey, check_line, sign_line

_MAX_FILE = MAX_FRESH_LINE + MAX_BLOCKS * BLOCK_SIZE
DEFAULT_LIFE = timedelta(days=2)


@dataclass(frozen=True)
class CurrentFresh:
    """A fresh file as it stands in a store."""

    fresh: Fresh
    tag: Tag


def signer_named(signed: SignedLine, digest: str) -> PublicKey:
    """The key of a fresh file that a channel names by its digest. Raises MpotaError."""
    found = next((b.key for b in signed.blocks if b.key.digest.hex() == digest), None)
    if found is None:
        raise MpotaError("the fresh file is not signed by the key that the channel names")
    return found


def read_fresh(store: Store, current: Current) -> CurrentFresh | None:
    """The fresh file of a channel; None if there is none.

    Raises MpotaError for one that boards would refuse, whatever its age.
    """
    channel = current.channel
    found = store.get(fresh_path(channel.channel), _MAX_FILE)
    if found is None or channel.fresh_key is None:
        return None
    signed = SignedLine.from_bytes(found.data, "fresh file")
    line, _ = check_line(found.data, [signer_named(signed, channel.fresh_key)], "fresh file")
    fresh = Fresh.from_line(line)
    if (fresh.name, fresh.channel) != (channel.name, channel.channel):
        raise MpotaError(f"fresh file is that of {fresh.name}, channel '{fresh.channel}'")
    return CurrentFresh(fresh, found.tag)


def refresh(
    store: Store,
    current: Current,
    keys: Iterable[PrivateKey],
    life: timedelta,
    now: datetime,
) -> Fresh:
    """Say that ``current`` is current, for ``life`` from ``now`` on.

    Raises MpotaError if the channel names another key, if it has expired, and if the fresh file
    that is there tells of a later channel: somebody has put back an old one.
    """
    channel = current.channel
    keys = tuple(keys)
    if channel.fresh_key not in [key.public.digest.hex() for key in keys]:
        named = f"names {channel.fresh_key[:16]}..." if channel.fresh_key else "has no such key"
        raise MpotaError(
            f"the channel {named}, this is another one",
            "mpota channel set TARGET --fresh-key KEY --key RELEASE-KEY",
        )
    if channel.expires <= now:
        raise MpotaError(
            f"the channel expired on {format_time(channel.expires)}",
            "mpota channel set TARGET --expires DAYS --key RELEASE-KEY",
        )
    path = fresh_path(channel.channel)
    found = store.get(path, _MAX_FILE)
    _check_order(store, current)
    fresh = Fresh(channel.name, channel.channel, channel.serial, current.digest, now, now + life)
    data = sign_line(fresh.to_line(), keys)
    if not store.replace(path, data, found.tag if found else None):
        raise MpotaError(f"{store.name}: somebody else has changed '{path}' meanwhile")
    return fresh


def _check_order(store: Store, current: Current) -> None:
    try:
        former = read_fresh(store, current)
    except MpotaError:
        return  # it is of a former key, or damaged, and is replaced
    channel = current.channel
    if former and former.fresh.serial > channel.serial:
        raise MpotaError(
            f"the channel has serial {channel.serial}, the fresh file tells of "
            f"{former.fresh.serial}: somebody has put back an old channel"
        )
    if former and former.fresh.serial == channel.serial and former.fresh.sha256 != current.digest:
        raise MpotaError(f"there are two channel files with serial {channel.serial}")
