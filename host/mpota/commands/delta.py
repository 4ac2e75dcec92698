"""``mpota delta``: what turns one firmware into the next, for a board that runs the former."""

from __future__ import annotations

from pathlib import Path

import click

from mpota.commands import _report as report
from mpota.commands._options import force_option, output_option
from mpota.errors import UsageError
from mpota.release.build import app_content
from mpota.storage.file import check_output, write_file
from mpota.units import format_size


@click.command()
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@output_option
@force_option
def command(old: Path, new: Path, output: Path | None, force: bool) -> None:
    """Write the delta from OLD to NEW, which are app images or merged firmware.

    A board that runs OLD installs it by ota.update.from_file(). If NEW alone, compressed, is
    smaller, that is written instead: boards take it by the same call. `mpota bundle --delta-from`
    puts deltas into a release.
    """
    from mpota.formats.delta import make_delta
    from mpota.formats.frames import compress

    old_app, new_app = app_content(old), app_content(new)
    if old_app.chip != new_app.chip:
        raise UsageError(f"{old.name} is for {old_app.chip}, {new.name} for {new_app.chip}")
    target = output or new.with_suffix(".delta")
    check_output(target, (old, new), force=force)
    data = make_delta(old_app.data, new_app.data).to_bytes()
    compressed = compress(new_app.data).to_bytes()
    what = "delta"
    if len(data) >= len(compressed):
        data, what = compressed, "compressed image (a delta would be larger)"
    write_file(target, data)
    size = len(new_app.data)
    report.say(f"{what}: {len(data):,} bytes, {len(data) / size:.2%} of {size:,}")
    report.written(target, format_size(len(data)))
