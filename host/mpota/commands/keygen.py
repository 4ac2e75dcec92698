"""``mpota keygen``: a key to sign releases with."""

from __future__ import annotations

import os
from pathlib import Path

import click

from mpota.commands import _report as report
from mpota.errors import UsageError
from mpota.release.key_files import given_passphrase, new_passphrase, passphrase_file_option
from mpota.release.signing import PrivateKey, public_to_pem
from mpota.storage.file import write_file


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
    public = key.with_suffix(".pub.pem")
    for path in (key, public):
        if os.path.lexists(path):
            raise UsageError(f"'{path}' exists", "give another name: a key is never overwritten")
    password = new_passphrase(key) if is_locked else given_passphrase()
    made = PrivateKey.generate()
    try:
        # Nobody else may ever read it, not even for a moment.
        descriptor = os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(made.to_pem(password))
            write_file(public, public_to_pem(made.public))
        except BaseException:
            key.unlink()
            raise
    except OSError as error:
        raise UsageError(f"cannot write '{key}': {error.strerror}") from None
    care = "encrypted" if password else "keep it secret"
    report.say(f"private key: {key} ({care}, and a copy of it safe)")
    report.say(f"public key:  {public}")
    report.say(f"digest:      {made.public.digest.hex()}")
