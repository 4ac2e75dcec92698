"""``mpota publish``: releases into a channel, or to hawkBit."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from mpota.commands import _report as report
from mpota.commands._options import dry_run_option
from mpota.commands._publishing import (
    channel_option,
    expires_option,
    finish,
    publish,
    read_keys,
    read_public_keys,
    say_channel,
    say_step,
    share_option,
    some_keys_option,
    spread_option,
    trust_option,
    unsigned_option,
)
from mpota.errors import MpotaError, UsageError
from mpota.formats.channel import SHARES
from mpota.formats.signature import PublicKey
from mpota.hawkbit.place import is_hawkbit
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
@some_keys_option
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

    Or TARGET is hawkbit+https://HOST/TENANT, where the bundle goes as it is, into a software module
    and a distribution set of its name and version; who gets it is for mpota rollout to say. A --key
    that is given must have signed it. Credentials: MPOTA_HAWKBIT_USER and MPOTA_HAWKBIT_PASSWORD,
    MPOTA_HAWKBIT_TOKEN, or MPOTA_HAWKBIT_FILE, a file with USER:PASSWORD.
    """
    *releases, target = arguments
    if is_hawkbit(target):
        _check_for_hawkbit()
        _publish_to_hawkbit(target, releases, keys, trust, dry_run=dry_run)
        return
    if not keys:
        raise click.UsageError("Missing option '--key'.", click.get_current_context())
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


_OF_CHANNELS = (
    "channel", "share", "spread", "days", "from_version", "deltas", "unsigned", "signed"
)  # fmt: skip


def _check_for_hawkbit() -> None:
    """Raises UsageError for an option that means nothing to hawkBit."""
    context = click.get_current_context()
    for parameter in context.command.params:
        name = parameter.name or ""
        is_given = context.get_parameter_source(name) is not ParameterSource.DEFAULT
        if name in _OF_CHANNELS and is_given:
            raise UsageError(
                f"{parameter.opts[0]} is for channels", "mpota rollout says who gets it in hawkBit"
            )


def _publish_to_hawkbit(
    target: str,
    releases: list[str],
    keys: tuple[Path, ...],
    trust: tuple[Path, ...],
    *,
    dry_run: bool,
) -> None:
    from mpota.commands._hawkbit import open_client
    from mpota.publish.hawkbit import BundleUpload
    from mpota.publish.hawkbit import publish as publish_there

    if not releases:
        raise UsageError("give a RELEASE and the TARGET to publish it in")
    client = open_client(target)
    trusted = read_public_keys((*keys, *trust)) if keys or trust else None
    pieces = []
    for path in releases:
        data = read_file(path)
        bundle = read_bundle(data, Path(path).name, trusted)
        if bundle.signature is None:
            if trusted is not None:
                raise MpotaError(f"{path} is not signed", f"mpota sign {path} --key KEY")
            report.note(f"{path} is not signed: boards that have keys refuse it")
        pieces.append(BundleUpload.of(bundle, data))
    for piece in pieces:
        with report.progress(f"publishing {piece.label}", len(piece.data)) as advance:
            publish_there(client, piece, _say_piece, advance, dry_run=dry_run)
    if dry_run:
        report.say("nothing is written yet")
        return
    for piece in pieces:
        report.say(f"next: mpota rollout create {target} {piece.label}", is_whole=True)


def _say_piece(what: str, name: str, size: int) -> None:
    if size:
        say_step(what, name, size)
    else:
        report.say(f"  {what:<8}{'':>10}  {name}")


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
