"""``mpota bundle``: a release in one file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from mpota.commands import _report as report
from mpota.commands._options import force_option, output_option
from mpota.commands._release_options import compose, release_options
from mpota.errors import MpotaError, UsageError
from mpota.formats.manifest import MAX_COUNTER, Form, Manifest
from mpota.release.build import bundle
from mpota.release.contents import digest_of
from mpota.release.key_files import read_private_keys, read_public_key
from mpota.storage.file import check_output, write_file
from mpota.units import format_size, short_digest


@click.command()
@release_options
@click.option(
    "--channel",
    "target",
    metavar="TARGET",
    help="Where it will be published: its counter is above those that are there.",
)
@output_option
@force_option
def command(
    keys: tuple[Path, ...], target: str | None, output: Path | None, force: bool, **options: Any
) -> None:
    """Make a bundle of FIRMWARE (an app image or a merged firmware) and directory trees.

    Boards install it by ota.release.install() or wherever they take an image, or follow a channel
    that it is brought into by mpota publish.
    """
    manifest, contents = compose(**options, as_url=False)
    if target is not None:
        manifest = _above(manifest, target, keys)
    file = output or Path(f"{manifest.name}-{manifest.version}.bundle")
    check_output(file, keys, force=force)
    made = bundle(manifest, contents.contents, read_private_keys(keys))
    data = made.to_bytes()
    write_file(file, data)
    report.say(
        f"{manifest.name} {manifest.version}" + (f" for {manifest.chip}" if manifest.chip else "")
    )
    for payload, content in zip(manifest.payloads, contents.contents, strict=True):
        digest = digest_of(payload, content.data)
        report.say(f"  {payload.kind:<6}{payload.size:>12,} bytes  {short_digest(digest)}")
        for form in payload.forms:
            if form.encoding:
                report.say(
                    f"    {_name(form):<20}{form.size:>10,} bytes  {form.size / payload.size:.1%}"
                )
    report.say(
        "  signed" if made.signature else "  not signed: boards that have keys will refuse it"
    )
    report.written(file, format_size(len(data)))


def _above(manifest: Manifest, target: str, keys: tuple[Path, ...]) -> Manifest:
    """The manifest with a counter above that of every release in the channels of ``target``."""
    from mpota.publish.prune import highest_counter
    from mpota.publish.store import open_store

    if not keys:
        raise UsageError(
            "--channel needs --key: only counters of channels that it has signed count",
            "or give --counter",
        )
    trusted = tuple(map(read_public_key, keys))
    there = highest_counter(open_store(target), manifest.name, trusted)
    if there >= MAX_COUNTER:
        raise MpotaError(f"the channel has counter {there}: there is none above it")
    return replace(manifest, counter=max(manifest.counter, there + 1))


def _name(form: Form) -> str:
    return f"delta from {form.base[:8]}" if form.base else str(form.encoding)
