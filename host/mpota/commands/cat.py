"""``mpota cat``: a file out of a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from mpota.commands import _report as report
from mpota.storage.file import read_file


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("name")
def command(bundle: Path, name: str) -> None:
    """Write NAME out of BUNDLE to standard output, byte for byte.

    NAME is a file that the bundle brings, or one of its members: manifest.json, app.bin, ...
    """
    from mpota.release.contents import BundleContents

    data = BundleContents.from_bytes(read_file(bundle), bundle.name).read(name)
    report.write_out(data)
