"""``mpota publish``: releases into a channel."""

from __future__ import annotations

from pathlib import Path

import click

from mpota.commands import _report as report
from mpota.commands._options import dry_run_option
from mpota.commands._publishing import (
    channel_option,
    expires_option,
    finish,
    keys_option,
    publish,
    read_keys,
    say_channel,
    share_option,
    spread_option,
    trust_option,
    unsigned_option,
)
from mpota.errors import UsageError
from mpota.formats.channel import SHARES
from mpota.formats.signature import PublicKey
from mpota.publish.channels import get_channel
from mpota.publish.publishing import Keys, Wishes, plan_releases
from mpota.publish.released import Released, read_bundle
from mpota.publish.staging import read_staged
from mpota.publish.store import Store, open_store
from mpota.storage.file import read_file

_DELTAS = 3


@click.command()
@click.argument("arguments", metavar="RELEASE... TARGET", nargs=-1, required=True)
@channel_option
@share_option
@spread_option
@expires_option
@click.option("--from-version", help="Only boards that have this release or a newer one.")
@click.option(
    "--deltas",
    type=click.IntRange(0, 10),
    default=_DELTAS,
    help=f"Differences from so many releases that are published already (default {_DELTAS}).",
)
@keys_option
@trust_option
@dry_run_option
@unsigned_option
@click.option(
    "--signed",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Publish what --unsigned has written and mpota sign has signed; without RELEASE.",
)
def command(
    arguments: tuple[str, ...],
    channel: str,
    share: int | None,
    spread: int | None,
    days: int | None,
    from_version: str | None,
    deltas: int,
    keys: tuple[Path, ...],
    trust: tuple[Path, ...],
    dry_run: bool,
    unsigned: Path | None,
    signed: Path | None,
) -> None:
    """Bring each RELEASE (a bundle) into a channel of TARGET, for boards that follow it.

    TARGET is a directory, s3://BUCKET/FOLDER, az://CONTAINER/FOLDER or gs://BUCKET/FOLDER, for
    one product. The channel file comes last: interrupted, nothing of it is visible to boards, and
    the same command again goes on. The manifests are signed anew, since payloads are files beside
    them, in the forms that the bundle has, and differences from what is published.
    """
    *releases, target = arguments
    if signed is not None and (releases or unsigned):
        raise UsageError("--signed takes no RELEASE: DIR has all that is to be published")
    if signed is None and not releases:
        raise UsageError("give a RELEASE and the TARGET to publish it in")
    signs = not (dry_run or unsigned or signed)
    own, trusted = read_keys(keys, trust, signs=signs)
    store = open_store(target)
    if signed is not None:
        _publish_signed(store, signed, trusted, dry_run=dry_run)
        return
    bundles = [read_bundle(read_file(path), Path(path).name, trusted) for path in releases]
    wishes = Wishes(
        channel,
        SHARES if share is None else share,
        spread or 0,
        days=days,
        from_version=from_version,
        deltas=deltas,
    )
    plan = plan_releases(store, bundles, wishes, trusted, _say_release)
    if plan is None:
        report.say(f"nothing to do: channel {channel} has it (mpota channel set changes its share)")
        say_channel(get_channel(store, channel, trusted).channel)
        return
    finish(store, plan, own, unsigned, dry_run=dry_run)


def _publish_signed(
    store: Store, directory: Path, trusted: tuple[PublicKey, ...], *, dry_run: bool
) -> None:
    found = read_staged(directory, store, trusted)
    if found is None:
        report.say(f"nothing to do: {store.name} has it")
        return
    plan, signatures = found
    if dry_run:
        finish(store, plan, Keys(()), None, dry_run=True)
    else:
        publish(store, plan, signatures)


def _say_release(release: Released) -> None:
    manifest = release.manifest
    what = f"{manifest.name} {manifest.version}" + (
        f" for {manifest.chip}" if manifest.chip else ""
    )
    report.say(what)
    for payload in manifest.payloads:
        for form in payload.forms:
            name = f"from {form.base[:16]}" if form.base else form.encoding or "as it is"
            report.say(f"  {payload.kind:<6}{form.size:>12,} bytes  {name}")
