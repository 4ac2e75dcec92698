"""``mpota sign``: a bundle, a manifest, an app image, or what is to be published."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from mpota.commands import _report as report
from mpota.commands._options import force_option, output_option
from mpota.commands._publishing import percent
from mpota.commands._release_options import keys_option
from mpota.errors import UsageError
from mpota.formats.bundle import Bundle, is_bundle
from mpota.formats.channel import CHANNEL_SUFFIX, Channel, SignedLine
from mpota.formats.manifest import Manifest
from mpota.formats.signature import parse_sector
from mpota.publish.staging import is_staged, read_line, sign_staged, to_sign
from mpota.release.build import attach, sign_app, sign_bundle
from mpota.release.key_files import read_private_keys
from mpota.release.signing import PrivateKey, sign, sign_line
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
    """Sign FILE: a bundle, a manifest (writes manifest.sig beside it), an app image, a channel
    file, or all in a directory that publish --unsigned has written.

    Signatures that it has are replaced. For keys in an HSM let espsecure sign the manifest or the
    channel file, and give what it wrote to --attach. A directory is signed in place.
    """
    if bool(keys) == (signed is not None):
        raise UsageError("give --key or --attach")
    if is_staged(file):
        _sign_directory(file, keys, is_attached=signed is not None, output=output)
        return
    data = read_file(file)
    private = read_private_keys(keys)
    target = output or _target(file, data)
    inputs = keys if file.suffix == CHANNEL_SUFFIX and output is None else (file, *keys)
    check_output(target, inputs, force=force or inputs == keys)
    write_file(target, _sign(data, file.name, private, read_file(signed) if signed else None))
    report.written(target)


def _sign_directory(
    directory: Path, keys: tuple[Path, ...], *, is_attached: bool, output: Path | None
) -> None:
    if is_attached or output is not None:
        raise UsageError(
            "a directory is signed in place, by --key",
            f"for --attach: the .json files in it, then the {CHANNEL_SUFFIX} file",
        )
    for item in to_sign(directory):
        report.say(_words(item.content))
    for path in sign_staged(directory, read_private_keys(keys)):
        report.say(f"written: {path}")


def _words(content: Manifest | Channel) -> str:
    """What is to be signed, in words."""
    if isinstance(content, Channel):
        releases = ", ".join(
            f"{e.version} ({e.state or percent(e.share)})" for e in content.releases
        )
        return f"{content.name}, channel {content.channel}, serial {content.serial}: {releases}"
    chip = f" for {content.chip}" if content.chip else ""
    return f"{content.name} {content.version}{chip}, counter {content.counter}"


def _target(file: Path, data: bytes) -> Path:
    if file.suffix == CHANNEL_SUFFIX:
        return file
    if data[:1] == b"{":
        return file.with_suffix(".sig")
    return file.with_name(f"{file.stem}-signed{file.suffix}")


def _sign(data: bytes, name: str, keys: tuple[PrivateKey, ...], signed: bytes | None) -> bytes:
    if is_bundle(data):
        bundle = Bundle.from_bytes(data)
        if signed is None:
            return sign_bundle(bundle, keys).to_bytes()
        return replace(bundle, signature=attach(bundle.manifest_bytes, signed)).to_bytes()
    if name.endswith(CHANNEL_SUFFIX):
        line, _ = read_line(data)
        if signed is None:
            return sign_line(line, keys)
        return SignedLine(line, parse_sector(attach(line, signed))).to_bytes()
    if data[:1] == b"{":
        Manifest.from_bytes(data)
        return sign(data, keys) if signed is None else attach(data, signed)
    if signed is not None:
        raise UsageError(
            "--attach is for bundles and manifests and channels: espsecure signs images whole"
        )
    return sign_app(data, name, keys)
