"""``mpota ls``: what is in a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from mpota.commands import _report as report
from mpota.commands._options import json_option
from mpota.storage.file import read_file
from mpota.units import format_size, short_digest


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@json_option
def command(bundle: Path, as_json: bool) -> None:
    """List what is in BUNDLE: its payloads, and the files that it brings.

    mpota cat prints one of them, mpota verify checks who has signed it.
    """
    from mpota.release.contents import BundleContents

    found = BundleContents.from_bytes(read_file(bundle), bundle.name)
    if as_json:
        report.print_json(found.to_json())
        return
    manifest = found.bundle.manifest
    chip = f" for {manifest.chip}" if manifest.chip else ""
    signed = "signed" if found.bundle.signature else "not signed"
    report.say(f"{manifest.name} {manifest.version}{chip}, counter {manifest.counter}, {signed}")
    report.print_table(
        ("Payload", "Where", ">Size", ">In the bundle", "Forms", "Digest"),
        (
            (
                payload.kind,
                payload.partition or "-",
                format_size(payload.size),
                format_size(sum(form.size for form in payload.forms if form.member)),
                ", ".join(form.encoding or "plain" for form in payload.forms),
                short_digest(digest),
            )
            for payload, digest in zip(manifest.payloads, found.digests, strict=True)
        ),
    )
    for name, data in found.files.items():
        report.say(f"  {len(data):>9,}  {name}")
