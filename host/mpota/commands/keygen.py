"""``mpota keygen``: a key to sign releases with."""

from __future__ import annotations

import os
from pathlib import Path

import click

from mpota import report
from mpota.errors import UsageError
from mpota.signing import PrivateKey, public_to_pem
from mpota.storage.file import write_file


@click.command()
@click.argument("key", type=click.Path(path_type=Path))
def command(key: Path) -> None:
    """Make a private key, KEY, and its public key beside it (.pub.pem).

    RSA with 3072 bits, in the format of `espsecure generate-signing-key --version 2`. An existing
    file is never overwritten.
    """
    public = key.with_suffix(".pub.pem")
    for path in (key, public):
        if os.path.lexists(path):
            raise UsageError(f"'{path}' exists", "give another name: a key is never overwritten")
    made = PrivateKey.generate()
    try:
        # Nobody else may ever read it, not even for a moment.
        descriptor = os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(made.to_pem())
            write_file(public, public_to_pem(made.public))
        except BaseException:
            key.unlink()
            raise
    except OSError as error:
        raise UsageError(f"cannot write '{key}': {error.strerror}") from None
    report.say(f"private key: {key} (keep it secret, and a copy of it safe)")
    report.say(f"public key:  {public}")
    report.say(f"digest:      {made.public.digest.hex()}")
