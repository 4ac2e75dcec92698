"""``mpota sign``: a bundle, a manifest or an app image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from mpota.commands import _report as report
from mpota.commands._options import force_option, output_option
from mpota.commands._release_options import keys_option
from mpota.errors import UsageError
from mpota.formats.bundle import Bundle, is_bundle
from mpota.formats.manifest import Manifest
from mpota.release.build import attach, sign_app, sign_bundle
from mpota.release.key_files import read_private_keys
from mpota.release.signing import PrivateKey, sign
from mpota.storage.file import check_output, read_file, write_file


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@keys_option
@click.option(
    "--attach",
    "signed",
    type=click.Path(path_type=Path),
    help="Take the signature that espsecure made over the manifest, instead of a key.",
)
@output_option
@force_option
def command(
    file: Path, keys: tuple[Path, ...], signed: Path | None, output: Path | None, force: bool
) -> None:
    """Sign FILE: a bundle, a manifest (writes manifest.sig beside it) or an app image.

    Signatures that it has are replaced. For keys in an HSM let espsecure sign the manifest and
    give what it wrote to --attach.
    """
    if bool(keys) == (signed is not None):
        raise UsageError("give --key or --attach")
    data = read_file(file)
    private = read_private_keys(keys)
    target = output or _target(file, data)
    check_output(target, (file, *keys), force=force)
    write_file(target, _sign(data, file.name, private, read_file(signed) if signed else None))
    report.written(target)


def _target(file: Path, data: bytes) -> Path:
    if data[:1] == b"{":
        return file.with_suffix(".sig")
    return file.with_name(f"{file.stem}-signed{file.suffix}")


def _sign(data: bytes, name: str, keys: tuple[PrivateKey, ...], signed: bytes | None) -> bytes:
    if is_bundle(data):
        bundle = Bundle.from_bytes(data)
        if signed is None:
            return sign_bundle(bundle, keys).to_bytes()
        return replace(bundle, signature=attach(bundle.manifest_bytes, signed)).to_bytes()
    if data[:1] == b"{":
        Manifest.from_bytes(data)
        return sign(data, keys) if signed is None else attach(data, signed)
    if signed is not None:
        raise UsageError("--attach is for bundles and manifests: espsecure signs images whole")
    return sign_app(data, name, keys)
