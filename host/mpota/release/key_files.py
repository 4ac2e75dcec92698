"""Keys in files, private ones encrypted or not, and the passphrase that opens these.

The passphrase comes from a file, from MPOTA_KEY_PASSPHRASE, or from whoever sits at the terminal:
never from the command line, which others on the machine can see.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from mpota.errors import MpotaError, UsageError
from mpota.formats.signature import EcdsaKey, PublicKey
from mpota.release.signing import (
    LockedKeyError,
    PrivateKey,
    app_key_from_pem,
    public_from_pem,
    public_to_pem,
)
from mpota.storage.file import read_file, write_file
from mpota.text import shown

VARIABLE = "MPOTA_KEY_PASSPHRASE"
_FILE = "mpota.release.key_files: passphrase file"  # in the context of click
_HINT = f"--passphrase-file FILE, or {VARIABLE} in the environment"

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Key = TypeVar("_Key")


def passphrase_file_option(command: _Command) -> _Command:
    """Add ``--passphrase-file``, which the functions below find without its being passed on."""
    return click.option(
        "--passphrase-file",
        type=click.Path(path_type=Path),
        expose_value=False,
        is_eager=True,
        callback=_remember,
        help=f"The passphrase of the key, its first line; or set {VARIABLE}.",
    )(command)


def read_private_key(path: Path) -> PrivateKey:
    """The key in a PEM file. Raises UsageError where a passphrase is needed and nobody can give
    it, MpotaError for a wrong one and for a file that is no such key."""
    return _read(path, PrivateKey.from_pem)


def read_public_key(path: Path) -> PublicKey:
    """A public key from its PEM, or from that of the private key; raises as `read_private_key`."""
    return _read(path, public_from_pem)


def read_private_keys(paths: Iterable[Path]) -> tuple[PrivateKey, ...]:
    return tuple(map(read_private_key, paths))


def read_app_keys(paths: Iterable[Path]) -> tuple[PublicKey | EcdsaKey, ...]:
    """Keys that sign apps, RSA's and ECDSA's; raises as `read_public_key`."""
    return tuple(_read(path, app_key_from_pem) for path in paths)


def given_passphrase() -> bytes | None:
    """The passphrase from the file or the environment, if any. Raises UsageError if it is empty."""
    context = click.get_current_context(silent=True)
    path = context.meta.get(_FILE) if context else None
    if path is not None:
        found = read_file(path).split(b"\n", 1)[0].rstrip(b"\r")
        source = f"'{path}'"
    elif VARIABLE in os.environ:
        found, source = os.fsencode(os.environ[VARIABLE]), VARIABLE
    else:
        return None
    if not found:
        raise UsageError(f"the passphrase in {source} is empty")
    return found


def new_passphrase(path: Path) -> bytes:
    """The passphrase for a key that is about to be made; asked for twice."""
    given = given_passphrase()
    return given if given is not None else _ask(path, is_new=True)


def check_new_key(key: Path) -> Path:
    """The file for the public half of a new key. Raises UsageError if that or ``key`` exists."""
    public = key.with_suffix(".pub.pem")
    for path in (key, public):
        if os.path.lexists(path):
            raise UsageError(f"'{path}' exists", "give another name: a key is never overwritten")
    return public


def write_key_pair(key: Path, password: bytes | None = None) -> PublicKey:
    """Make a key: its private half in the file ``key``, encrypted if there is a password, the
    public one beside it (.pub.pem). Raises UsageError if one of them exists, or cannot be written.
    """
    public = check_new_key(key)
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
    return made.public


def _read(path: Path, parse: Callable[[bytes, bytes | None], _Key]) -> _Key:
    data = read_file(path)
    try:
        try:
            return parse(data, None)
        except LockedKeyError:
            given = given_passphrase()
            return parse(data, given if given is not None else _ask(path))
    except UsageError:
        raise
    except MpotaError as error:
        raise MpotaError(f"{path.name}: {error}", error.hint) from None


def _ask(path: Path, *, is_new: bool = False) -> bytes:
    if not sys.stdin.isatty():
        what = "a passphrase is needed" if is_new else "the key is encrypted"
        raise UsageError(f"{path.name}: {what}, and there is no terminal to ask at", _HINT)
    text: str = click.prompt(
        f"Passphrase for {shown(path.name)}", hide_input=True, confirmation_prompt=is_new, err=True
    )
    return os.fsencode(text)


def _remember(context: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    if value is not None:
        context.meta[_FILE] = value
