"""What ``mpota publish`` and ``mpota channel`` have in common: targets, shares, times and keys."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mpota.commands import _report as report
from mpota.errors import UsageError
from mpota.formats.channel import SHARES, Channel, ChannelEntry, check_name
from mpota.formats.signature import PublicKey
from mpota.publish.channels import MAX_DAYS
from mpota.publish.publishing import Keys, Publication, Signatures, carry_out
from mpota.publish.seen import SeenChannels
from mpota.publish.staging import stage
from mpota.publish.store import Store
from mpota.release.key_files import passphrase_file_option, read_private_keys, read_public_key
from mpota.virtual.micropython import cache_dir

if TYPE_CHECKING:
    _TextType = click.ParamType[Any]
else:
    _TextType = click.ParamType

_Command = TypeVar("_Command", bound=Callable[..., Any])
_PATH = click.Path(path_type=Path)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
TIME_FORMAT = "%Y-%m-%d %H:%M"


class Share(_TextType):
    """``5``, ``0.25`` or ``100%``, as parts of 10000."""

    name = "percent"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([0-9]{1,3})(?:\.([0-9]{1,2}))?\s*%?", value)
        share = int(found[1]) * 100 + int((found[2] or "0").ljust(2, "0")) if found else -1
        if not 0 <= share <= SHARES:
            raise UsageError(f"share '{value}' is no percentage", "0 to 100, as in 5 or 0.25")
        return share


class Span(_TextType):
    """``30m``, ``6h``, ``2d`` or seconds, in seconds."""

    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([0-9]{1,9})([smhd]?)", value)
        if found is None:
            raise UsageError(f"'{value}' is no time", "30m, 6h, 2d or a number of seconds")
        return int(found[1]) * _SECONDS[found[2]]


class ChannelName(_TextType):
    """The name of a channel."""

    name = "name"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        return check_name(value)


channel_option = click.option(
    "--channel", type=ChannelName(), default="stable", help="The channel (default stable)."
)
share_option = click.option(
    "--share", type=Share(), metavar="PERCENT", help="Only so many of the boards, 0 to 100."
)
spread_option = click.option(
    "--spread", type=Span(), metavar="TIME", help="Their starts are spread over 30m, 6h, 2d, ..."
)
expires_option = click.option(
    "--expires",
    "days",
    type=click.IntRange(1, MAX_DAYS),
    metavar="DAYS",
    help="Boards start nothing by a channel file that is older (default 30, or as before).",
)
unsigned_option = click.option(
    "--unsigned",
    type=_PATH,
    metavar="DIR",
    help="Publish nothing: write what is to be signed into DIR, for mpota sign.",
)
trust_option = click.option(
    "--trust", multiple=True, type=_PATH, metavar="KEY", help="What it has signed is good, too."
)


def _keys_option(text: str, *, is_required: bool = True) -> Callable[[_Command], _Command]:
    option = click.option(
        "--key", "keys", multiple=True, required=is_required, type=_PATH, help=text
    )
    return lambda command: option(passphrase_file_option(command))


_SIGNING = "Private key to sign with; up to three. Where nothing is signed, the public one does."
keys_option = _keys_option(_SIGNING)
some_keys_option = _keys_option(_SIGNING, is_required=False)
public_keys_option = _keys_option("A key that may sign; the public one will do.")


def read_public_keys(paths: tuple[Path, ...]) -> tuple[PublicKey, ...]:
    return tuple(map(read_public_key, paths))


def read_keys(
    keys: tuple[Path, ...], trust: tuple[Path, ...], *, signs: bool
) -> tuple[Keys, tuple[PublicKey, ...]]:
    """(keys to sign with, none unless ``signs``; all keys whose signatures are trusted)."""
    own = Keys(read_private_keys(keys) if signs else ())
    public = own.public if signs else read_public_keys(keys)
    return own, (*public, *read_public_keys(trust))


def finish(
    store: Store, plan: Publication, keys: Keys, unsigned: Path | None, *, dry_run: bool
) -> None:
    """Carry a plan out, or show what it would do, or write the files that are to be signed for it.

    Raises MpotaError if it follows on a channel that is older than what this desk has seen.
    """
    if plan.former is not None:
        seen().check(store, plan.former.channel)
    if dry_run:
        for upload in plan.uploads:
            is_there = store.holds(upload.path, upload.data)
            say_step("there" if is_there else "to send", upload.path, len(upload.data))
        report.say("nothing is written yet; then:")
    elif unsigned is not None:
        for path in stage(unsigned, plan):
            report.say(f"to be signed: {path}")
        report.say(f"then: mpota publish {store.name} --signed {unsigned} --key KEY")
        report.say("which makes it:")
    else:
        publish(store, plan, keys)
        return
    say_channel(plan.channel)


def publish(store: Store, plan: Publication, signatures: Signatures) -> None:
    """Carry a plan out, and note its channel among those that this desk has seen."""
    carry_out(store, plan, signatures, say_step)
    seen().note(store, plan.channel)
    say_channel(plan.channel)


def seen() -> SeenChannels:
    return SeenChannels(cache_dir() / "channels.json")


def say_step(what: str, path: str, size: int) -> None:
    report.say(f"  {what:<8}{size:>10,}  {path}")


def say_channel(channel: Channel) -> None:
    expires = channel.expires.strftime(TIME_FORMAT)
    report.say(
        f"{channel.name}, channel {channel.channel}: serial {channel.serial}, until {expires} UTC"
    )
    for entry in channel.releases:
        report.say(f"  {entry.version} for {hardware(entry)}: {describe(entry)}")
    if channel.fresh_key:
        report.say("boards wait for its fresh file: mpota channel refresh")


def hardware(entry: ChannelEntry) -> str:
    kinds = ", ".join(filter(None, (entry.chip, entry.board)))
    return kinds or "all chips"


def describe(entry: ChannelEntry) -> str:
    """Which boards get the release of an entry, and when, in words."""
    if entry.state:
        return entry.state
    text = "all boards" if entry.share == SHARES else f"{percent(entry.share)} of the boards"
    if entry.begins and entry.spread:
        begins = entry.begins.strftime(TIME_FORMAT)
        text += f", over {span(entry.spread)} from {begins} UTC"
    return text + (f", from {entry.from_version} on" if entry.from_version else "")


def percent(share: int) -> str:
    return f"{share / 100:g} %"


def span(seconds: int) -> str:
    """``seconds`` as `Span` reads them, in the largest unit that divides them."""
    unit = next(unit for unit in ("d", "h", "m", "s") if seconds % _SECONDS[unit] == 0)
    return f"{seconds // _SECONDS[unit]}{unit}"
