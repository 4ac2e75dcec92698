"""``mpota channel``: what boards are told, and what they will do."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from mpota.commands import _report as report
from mpota.commands._options import dry_run_option, json_option
from mpota.commands._publishing import (
    TIME_FORMAT,
    Span,
    channel_option,
    describe,
    expires_option,
    finish,
    hardware,
    keys_option,
    percent,
    public_keys_option,
    read_keys,
    read_public_keys,
    say_step,
    seen,
    share_option,
    spread_option,
    trust_option,
    unsigned_option,
)
from mpota.errors import UsageError
from mpota.formats.channel import PAUSED, POLL_RANGE, SHARES, WITHDRAWN, Channel, format_time
from mpota.publish.channels import EntryChange, changed, get_channel, reissued
from mpota.publish.fresh import DEFAULT_LIFE, refresh
from mpota.publish.look import Look, Prospect, look
from mpota.publish.prune import find_leftovers, remove
from mpota.publish.publishing import Publication, utc_now
from mpota.publish.store import open_store
from mpota.release.key_files import read_private_keys
from mpota.units import format_size

_KEEP = 3
_OLDER = 86400


@click.group()
def command() -> None:
    """Channels: what is published, and how far it goes."""


@command.command()
@click.argument("target")
@channel_option
@public_keys_option
@json_option
def show(target: str, channel: str, keys: tuple[Path, ...], as_json: bool) -> None:
    """Say what boards will do, and check all that is published; exit 1 if they would refuse it.

    Boards are told by their hardware and the release that they run; "older" is none of those that
    are published. What they fetch is that of boards with the part `encoded`. Signatures and
    digests of everything that the channel leads to are verified.
    """
    store = open_store(target)
    trusted = read_public_keys(keys)
    current = get_channel(store, channel, trusted)
    seen().check(store, current.channel)
    seen().note(store, current.channel)
    found = look(store, current, trusted, utc_now())
    if as_json:
        report.print_json(_to_json(found))
    else:
        _say_look(found)
    sys.exit(1 if found.faults else 0)


def _say_look(found: Look) -> None:
    channel = found.current.channel
    report.say(f"{channel.name}, channel {channel.channel}: serial {channel.serial}")
    report.say(f"issued {_time(channel, 'issued')}, expires {_time(channel, 'expires')} UTC")
    report.say(f"signed by {found.current.signer.digest.hex()}")
    for entry in channel.releases:
        report.say(f"  {entry.version} for {hardware(entry)}: {describe(entry)}")
    rows = []
    former: Prospect | None = None
    for outcome in found.outcomes:
        is_first = former is None or _kind(former) != _kind(outcome)
        rows.append(_row(outcome, is_first=is_first))
        former = outcome
    report.print_table(("Hardware", "Runs", "Gets", "Boards", ">Fetches"), rows)
    for fault in found.faults:
        report.say(f"refused by boards: {fault}")
    for warning in found.warnings:
        report.say(f"warning: {warning}")
    if not found.faults:
        report.say(f"{found.files} files, {format_size(found.size)}: all as they were signed")


def _time(channel: Channel, name: str) -> str:
    return str(getattr(channel, name).strftime(TIME_FORMAT))


def _kind(outcome: Prospect) -> tuple[str | None, str | None, str]:
    return outcome.chip, outcome.board, outcome.runs


def _row(outcome: Prospect, *, is_first: bool) -> tuple[str, ...]:
    everybody = "all" if is_first else "the others"
    boards = everybody if outcome.share == SHARES else percent(outcome.share)
    if outcome.entry is None:
        boards = everybody
    kinds = ", ".join(filter(None, (outcome.chip, outcome.board))) or "all chips"
    return (
        kinds,
        outcome.runs,
        outcome.entry.version if outcome.entry else "nothing",
        boards,
        "" if outcome.fetches is None else format_size(outcome.fetches),
    )


def _to_json(found: Look) -> dict[str, Any]:
    channel = found.current.channel
    return {
        "name": channel.name,
        "channel": channel.channel,
        "serial": channel.serial,
        "issued": format_time(channel.issued),
        "expires": format_time(channel.expires),
        "signed_by": found.current.signer.digest.hex(),
        "boards": [
            {
                "chip": outcome.chip,
                "board": outcome.board,
                "runs": outcome.runs,
                "gets": outcome.entry.version if outcome.entry else None,
                "share": outcome.share,
                "fetches": outcome.fetches,
            }
            for outcome in found.outcomes
        ],
        "faults": list(found.faults),
        "warnings": list(found.warnings),
    }


@command.command(name="set")
@click.argument("target")
@channel_option
@click.option("--version", help="The release that is meant (default: the newest).")
@share_option
@spread_option
@click.option("--pause", "state", flag_value=PAUSED, help="No board starts it for now.")
@click.option("--resume", "state", flag_value="", help="Boards go on with it.")
@click.option("--withdraw", "state", flag_value=WITHDRAWN, help="Nobody takes it any more.")
@expires_option
@click.option("--poll", type=Span(), metavar="TIME", help="How often boards ask (default 1h).")
@click.option(
    "--fresh-key",
    type=click.Path(path_type=Path),
    metavar="KEY",
    help="Boards want a fresh file by this key: see refresh.",
)
@click.option("--no-fresh-key", is_flag=True, help="They want none any more.")
@keys_option
@trust_option
@dry_run_option
@unsigned_option
def set_(
    target: str,
    channel: str,
    version: str | None,
    share: int | None,
    spread: int | None,
    state: str | None,
    days: int | None,
    poll: int | None,
    fresh_key: Path | None,
    no_fresh_key: bool,
    keys: tuple[Path, ...],
    trust: tuple[Path, ...],
    dry_run: bool,
    unsigned: Path | None,
) -> None:
    """Change how far a release goes, or how long the channel holds: signed, by a higher serial.

    --expires alone, or nothing at all, has it issued anew, so that it does not expire.
    """
    from dataclasses import replace

    if fresh_key and no_fresh_key:
        raise UsageError("--fresh-key or --no-fresh-key")
    if poll is not None and not POLL_RANGE[0] <= poll <= POLL_RANGE[1]:
        raise UsageError(f"--poll {poll} s: {POLL_RANGE[0]} s to {POLL_RANGE[1] // 3600} h")
    own, trusted = read_keys(keys, trust, signs=not (dry_run or unsigned))
    store = open_store(target)
    former = get_channel(store, channel, trusted)
    now, found = utc_now(), former.channel
    change = EntryChange(share, spread, state=state)
    if change != EntryChange():
        found = changed(found, version, change, now)
    elif version is not None:
        raise UsageError("--version needs --share, --spread, --pause, --resume or --withdraw")
    next_one = reissued(found, found.name, channel, found.releases, now, days)
    if poll is not None:
        next_one = replace(next_one, poll=poll)
    if fresh_key is not None:
        (key,) = read_public_keys((fresh_key,))
        next_one = replace(next_one, fresh_key=key.digest.hex())
    if no_fresh_key:
        next_one = replace(next_one, fresh_key=None)
    next_one.to_line()
    finish(store, Publication((), next_one, former), own, unsigned, dry_run=dry_run)


@command.command(name="refresh")
@click.argument("target")
@channel_option
@keys_option
@click.option(
    "--trust",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    metavar="KEY",
    help="Whose channel it is: the public key that signs it.",
)
@click.option(
    "--valid",
    type=Span(),
    default=int(DEFAULT_LIFE.total_seconds()),
    metavar="TIME",
    help="How long it holds (default 2d).",
)
def refresh_(
    target: str, channel: str, keys: tuple[Path, ...], trust: tuple[Path, ...], valid: int
) -> None:
    """Say by the fresh file that the channel file is today's, for a cron job.

    Its key is named in the channel (mpota channel set --fresh-key) and can say nothing else.
    """
    if valid <= 0:
        raise UsageError("--valid 0: no board would ever take it for fresh")
    store = open_store(target)
    private = read_private_keys(keys)
    current = get_channel(store, channel, read_public_keys(trust))
    seen().check(store, current.channel)
    fresh = refresh(store, current, private, timedelta(seconds=valid), utc_now())
    expires = fresh.expires.strftime(TIME_FORMAT)
    report.say(f"channel {channel}: serial {fresh.serial} is fresh until {expires} UTC")


@command.command()
@click.argument("target")
@public_keys_option
@click.option(
    "--keep",
    type=click.IntRange(0, 1000),
    default=_KEEP,
    help=f"Newest releases of each hardware that stay, for differences (default {_KEEP}).",
)
@click.option(
    "--older",
    type=Span(),
    default=_OLDER,
    metavar="TIME",
    help="Only what has been there so long (default 1d): the rest may be on its way.",
)
@dry_run_option
def prune(target: str, keys: tuple[Path, ...], keep: int, older: int, dry_run: bool) -> None:
    """Remove files that no channel of TARGET leads to, and that no later release can need."""
    store = open_store(target)
    trusted = read_public_keys(keys)
    now = utc_now() + timedelta(seconds=1)  # utc_now() leaves out the parts of a second
    found = find_leftovers(store, trusted, keep, timedelta(seconds=older), now)
    for listed in found.files:
        say_step("to go" if dry_run else "removed", listed.path, listed.size)
    if not dry_run:
        remove(store, found)
    size = format_size(sum(listed.size for listed in found.files))
    report.say(f"{len(found.files)} files, {size}; {found.kept} stay")
