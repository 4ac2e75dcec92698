"""``mpota verify``: read a board back and compare; or check a release."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from mpota.commands import _report as report
from mpota.commands._live import looking
from mpota.commands._options import (
    baud_option,
    complete_ports,
    json_option,
    look_option,
    table_offset_option,
)
from mpota.errors import UsageError
from mpota.flashing.verify import Verified, find_regions, verify
from mpota.release.key_files import passphrase_file_option, read_app_keys
from mpota.storage.file import read_file


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("port", required=False, shell_complete=complete_ports)
@click.argument("partition", required=False)
@click.option(
    "--key", "keys", multiple=True, type=click.Path(path_type=Path), help="A key that may sign."
)
@passphrase_file_option
@json_option
@baud_option
@table_offset_option
@look_option
def command(
    file: Path,
    port: str | None,
    partition: str | None,
    keys: tuple[Path, ...],
    as_json: bool,
    baud: int,
    table_offset: int,
    yes: bool,
) -> None:
    """Compare FILE with what is on the board on PORT; exit 1 if it differs.

    FILE is a firmware, an app image (the slot that boots, or PARTITION), or the content of
    PARTITION. Says where the first differences are, how many, and what they look like.

    Without PORT, FILE is a bundle, a manifest or a signed app image: checks that it is whole, and
    that one of the KEYs has signed it.
    """
    if port is None:
        _verify_release(file, keys, as_json)
        return
    if keys:
        raise UsageError("--key is for releases: a board is compared with a file")
    data = read_file(file)
    with looking(port, baud, table_offset, yes=yes) as board:
        regions = find_regions(board, data, file.name, partition, table_offset)
        results = verify(board, regions, table_offset)
    if as_json:
        report.print_json([result.to_json() for result in results])
    else:
        for result in results:
            _print(result)
    sys.exit(0 if all(result.comparison.is_equal for result in results) else 1)


def _verify_release(file: Path, keys: tuple[Path, ...], as_json: bool) -> None:
    from mpota.release.build import verify_file

    found = verify_file(file, read_app_keys(keys))
    signer = found.signer.digest.hex() if found.signer else None
    if as_json:
        manifest = json.loads(found.manifest.to_bytes()) if found.manifest else None
        report.print_json({"manifest": manifest, "signed": found.is_signed, "signed_by": signer})
        return
    what = f"{found.manifest.name} {found.manifest.version}" if found.manifest else "app image"
    signed = "signature not checked: no --key" if found.is_signed else "not signed"
    if signer:
        signed = f"signed by {signer}"
    report.say(f"{file.name}: {what}, whole, {signed}")


def _print(result: Verified) -> None:
    region, found = result.region, result.comparison
    place = f"{region.name} at {region.offset:#x}"
    if found.is_equal:
        report.say(f"{place}: {found.size:,} bytes are the same", tone=report.Tone.GOOD)
        return
    report.say(f"{place}: {found.differing:,} of {found.size:,} bytes differ", tone=report.Tone.BAD)
    for kind in (result.note,) if result.note else found.kinds:
        report.say(f"  {kind}")
    shown = ", ".join(f"{start:#x}-{end:#x}" for start, end in found.shown_ranges)
    more = len(found.ranges) - len(found.shown_ranges)
    report.say(f"  at {shown}" + (f" and {more:,} more places" if more else ""))
    if result.slot is not None:
        verdict = result.slot.verdict
        report.say(
            "  the bootloader would boot it" if verdict.is_bootable else "  it does not boot:"
        )
        for line in verdict.console:
            report.say(f"    {line}")
