"""``mpota keygen``: a key to sign releases with."""

from __future__ import annotations

from pathlib import Path

import click

from mpota.commands import _report as report
from mpota.release.key_files import (
    check_new_key,
    given_passphrase,
    new_passphrase,
    passphrase_file_option,
    write_key_pair,
)


@click.command()
@click.argument("key", type=click.Path(path_type=Path))
@click.option("--passphrase", "is_locked", is_flag=True, help="Encrypt it; asks for a passphrase.")
@passphrase_file_option
def command(key: Path, is_locked: bool) -> None:
    """Make a private key, KEY, and its public key beside it (.pub.pem).

    RSA with 3072 bits, in the format of `espsecure generate-signing-key --version 2`. An existing
    file is never overwritten. The private key is encrypted if there is a passphrase for it: asked
    for by --passphrase, in a file or in MPOTA_KEY_PASSPHRASE.
    """
    public = check_new_key(key)
    password = new_passphrase(key) if is_locked else given_passphrase()
    made = write_key_pair(key, password)
    care = "encrypted" if password else "keep it secret"
    report.say(f"private key: {key} ({care}, and a copy of it safe)")
    report.say(f"public key:  {public}")
    report.say(f"digest:      {made.digest.hex()}")
