"""What ``mpota bundle`` and ``mpota manifest`` have in common: what a release is made of."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, TypeVar

import click

from mpota.commands._options import split_pair
from mpota.errors import MpotaError, UsageError
from mpota.firmware.firmware import read_app
from mpota.formats.app_desc import find_micropython
from mpota.formats.manifest import Manifest
from mpota.mpy_cross import PORTABLE, MpyFormat, told
from mpota.release.build import Contents, Sources
from mpota.release.counter import counter_now
from mpota.release.key_files import passphrase_file_option, read_public_key
from mpota.storage.file import read_file

_Command = TypeVar("_Command", bound=Callable[..., Any])
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_PATH = click.Path(path_type=Path)


def keys_option(command: _Command) -> _Command:
    """Add the options for keys to sign with, and for their passphrase."""
    option = click.option(
        "--key", "keys", multiple=True, type=_PATH, help="Private key to sign with; up to three."
    )
    return option(passphrase_file_option(command))


_OPTIONS = (
    click.argument("firmware", type=_PATH, required=False),
    click.option("--name", help="The product: boards take only releases of the same name."),
    click.option("--version", "release_version", help="Of the release: 2.1.0 or 2.1.0-rc1."),
    click.option("--files", "directories", multiple=True, type=_PATH, help="A tree of files."),
    click.option(
        "--mpy", is_flag=True, help="Compile the modules in it, for the MicroPython of FIRMWARE."
    ),
    click.option(
        "--mpy-for",
        metavar="PORT|FIRMWARE",
        help="Compile them for the MicroPython of this board, or in this firmware.",
    ),
    click.option(
        "--with-ota",
        "has_ota",
        is_flag=True,
        help="Bring the ota package of this mpota: it takes the old one's place on the board.",
    ),
    click.option("--certs", multiple=True, type=_PATH, help="CA certificates, PEM or DER."),
    click.option("--data", multiple=True, metavar="LABEL=FILE", help="A data partition."),
    click.option("--compress", is_flag=True, help="Compress what it brings."),
    click.option(
        "--delta-from",
        "bases",
        multiple=True,
        type=_PATH,
        metavar="OLD",
        help="Add a delta for boards that run this firmware.",
    ),
    click.option("--board", help="Only for boards whose MicroPython says this."),
    click.option("--from-version", help="The oldest release that may be updated."),
    click.option(
        "--counter",
        type=int,
        help="Boards refuse lower ones from then on; else the seconds since 2020.",
    ),
    click.option(
        "--allow-downgrade", is_flag=True, help="Boards take it though they have a newer version."
    ),
    click.option("--expires", metavar="TIME", help="2027-01-31, 2027-01-31T12:00:00Z or 90d."),
    click.option("--add-key", "add_keys", multiple=True, metavar="KEY", help="Trust it too."),
    click.option("--retire-key", "retire_keys", multiple=True, metavar="KEY", help="No longer."),
    keys_option,
)


def release_options(command: _Command) -> _Command:
    """Add the options above, which become keyword arguments of `compose`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def compose(
    firmware: Path | None,
    name: str | None,
    release_version: str | None,
    directories: tuple[Path, ...],
    mpy: bool,
    mpy_for: str | None,
    has_ota: bool,
    certs: tuple[Path, ...],
    data: tuple[str, ...],
    compress: bool,
    bases: tuple[Path, ...],
    board: str | None,
    from_version: str | None,
    counter: int | None,
    allow_downgrade: bool,
    expires: str | None,
    add_keys: tuple[str, ...],
    retire_keys: tuple[str, ...],
    *,
    as_url: bool,
) -> tuple[Manifest, Contents]:
    """The manifest, and the contents of its payloads. Raises MpotaError, UsageError."""
    if name is None or release_version is None:
        raise UsageError("a release needs --name and --version")
    pairs = (split_pair(text, "=", "LABEL=FILE") for text in data)
    sources = Sources(
        firmware,
        directories,
        certs,
        tuple((label, Path(path)) for label, path in pairs),
        _mpy_format(firmware, mpy_for) if mpy or mpy_for else None,
        compress,
        bases,
        has_ota,
    )
    contents = Contents.read(sources)
    if firmware is not None:
        _check_mpy(firmware, contents.mpy)
    manifest = Manifest(
        name,
        release_version,
        contents.payloads(as_url=as_url),
        chip=contents.chip,
        board=board,
        from_version=from_version,
        counter=counter_now() if counter is None else counter,
        expires=None if expires is None else _parse_time(expires),
        add_keys=tuple(key_digest(key) for key in add_keys),
        retire_keys=tuple(key_digest(key) for key in retire_keys),
        allow_downgrade=allow_downgrade,
        mpy=contents.mpy,
    )
    manifest.to_bytes()  # raises for what a board would refuse
    return manifest, contents


def _mpy_format(firmware: Path | None, source: str | None) -> MpyFormat:
    """The ``.mpy`` that boards of the release load: told by ``source``, by the firmware, or any."""
    if source is not None and not Path(source).is_file():
        from mpota.push.install import read_mpy_format
        from mpota.push.repl import Session

        with Session(source) as session:
            return read_mpy_format(session)
    path = firmware if source is None else Path(source)
    if path is None:
        return PORTABLE
    app = read_app(read_file(path), path.name)
    return MpyFormat.of_micropython(find_micropython(app.image.data).version, app.image.chip.name)


def _check_mpy(firmware: Path, needs: int) -> None:
    """Raises MpotaError if the MicroPython in a firmware does not load the modules beside it."""
    app = read_app(read_file(firmware), firmware.name)
    version = find_micropython(app.image.data).version
    if not needs or version is None:
        return
    loads = MpyFormat.of_micropython(version, app.image.chip.name)
    if not loads.takes(needs):
        raise MpotaError(
            f"the modules are {told(needs)}, MicroPython {version} in {firmware.name} loads "
            f".mpy v{loads.version}.{loads.sub_version}",
            "--mpy compiles the sources for it",
        )


def key_digest(text: str) -> str:
    """A key's digest in hex, given as such or as a PEM file."""
    if re.fullmatch(r"[0-9a-f]{64}", text):
        return text
    return read_public_key(Path(text)).digest.hex()


def _parse_time(text: str) -> str:
    days = re.fullmatch(r"(\d{1,5})d", text)
    if days:
        return (datetime.now(timezone.utc) + timedelta(days=int(days[1]))).strftime(_TIME)
    for form in (_TIME, "%Y-%m-%d"):
        try:
            expires = datetime.strptime(text, form).replace(tzinfo=timezone.utc)
        except ValueError:
            continue
        if expires <= datetime.now(timezone.utc):
            raise UsageError(f"--expires {text} is in the past: no board would take the release")
        return expires.strftime(_TIME)
    raise UsageError(f"'{text}' is not a time", "write 2027-01-31, 2027-01-31T12:00:00Z or 90d")
