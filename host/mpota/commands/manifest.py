"""``mpota manifest``: a release as files to publish; or the manifest of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mpota.commands import _report as report
from mpota.commands._options import force_option, output_option
from mpota.commands._release_options import compose, release_options
from mpota.errors import UsageError
from mpota.formats.bundle import Bundle, is_bundle
from mpota.release.build import publish
from mpota.release.key_files import read_private_keys
from mpota.storage.file import check_output, read_file


@click.command()
@release_options
@output_option
@force_option
def command(
    firmware: Path | None,
    keys: tuple[Path, ...],
    output: Path | None,
    force: bool,
    **options: Any,
) -> None:
    """Write a manifest and its payloads into the directory OUTPUT, for any web server.

    With a bundle in place of FIRMWARE and no other option, print its manifest.
    """
    if firmware is not None and options["name"] is None and is_bundle(data := read_file(firmware)):
        report.print_document(Bundle.from_bytes(data).manifest_bytes.decode())
        return
    if output is None:
        raise UsageError("give the directory to publish in by -o")
    manifest, contents = compose(firmware, **options, as_url=True)
    check_output(output / "manifest.json", force=force)
    for path in publish(output, manifest, contents, read_private_keys(keys)):
        report.written(path)
