"""The release that is rehearsed, of any kind that a board takes, as the files of a server."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from mpota.errors import MpotaError, UsageError
from mpota.firmware import sample
from mpota.firmware.firmware import App, read_app
from mpota.formats.app_desc import find_micropython
from mpota.formats.bundle import is_bundle
from mpota.formats.channel import CHANNEL_SUFFIX, Channel
from mpota.formats.manifest import MAX_SIZE, Manifest
from mpota.push.update import Package
from mpota.storage.file import read_file
from mpota.units import MiB

IMAGE, RELEASE, CHANNEL = "image", "release", "channel"

_MAX_DOWNLOAD_SIZE = 64 * MiB
_MAX_FILES = 10_000
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Offer:
    """A release on its server: ``files`` by their paths there, and the one that boards name.

    ``kind``: IMAGE is for ota.update, RELEASE for ota.release, CHANNEL for ota.channel.
    ``app``: the app that it brings, where the desk can tell; ``chip``: whose it is.
    """

    name: str
    kind: str
    path: str
    files: Mapping[str, bytes] = field(repr=False)
    version: str
    app: App | None = field(default=None, repr=False)
    chip: str | None = None
    is_signed: bool = False
    channel: Channel | None = None
    is_following: bool = False  # it is installed after another one
    is_again: bool = False  # it is the same release again, for want of a following one

    @property
    def data(self) -> bytes:
        """The file that boards name."""
        return self.files[self.path]


def open_offer(source: str) -> Offer:
    """``source``: an app image, a merged firmware, a compressed one, a delta, a bundle, a manifest
    or its directory, a published channel's directory or file, or a URL of one of these but the
    directories.

    Raises MpotaError for what is none of them, or damaged.
    """
    if source.startswith(("http://", "https://")):
        return _download(source)
    path = Path(source)
    if path.is_dir():
        return _of_directory(path)
    data = read_file(path)
    if path.suffix == CHANNEL_SUFFIX:
        return _of_channel(path.parent, path.name)
    if data[:1] == b"{":
        return _of_manifest(path.name, _tree(path.parent, path.name))
    return _of_file(path.name, data)


def following(offer: Offer) -> Offer:
    """A version that follows, to be installed over this one: made up, where that can be; where it
    would have to be signed, or the app is not known, the same once more.
    """
    if offer.kind == CHANNEL or offer.is_signed or offer.app is None:
        return replace(offer, is_following=True, is_again=True)
    try:
        image = sample.next_version(offer.app.image.data)
    except MpotaError:  # the app holds no version
        return replace(offer, is_following=True, is_again=True)
    return replace(_of_file("following.bin", image), is_following=True)


def _of_file(name: str, data: bytes) -> Offer:
    package = Package.of_data(name, data)
    signed = bool(package.bundle and package.bundle.signature)
    chip = package.app.image.chip.name if package.app else None
    if package.bundle is not None:
        chip = package.bundle.manifest.chip or chip
    kind = RELEASE if is_bundle(data) else IMAGE
    app = package.app
    version = package.version
    if kind == IMAGE and app is not None:
        signed = bool(app.signature)
        version = find_micropython(app.image.data).version or name
    return Offer(name, kind, _fit(name), {_fit(name): data}, version, app, chip, signed)


def _fit(name: str) -> str:
    """A path that needs no quoting in a URL, and is not hidden from boards."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name).lstrip(
        "."
    )


def _of_directory(path: Path) -> Offer:
    channels = sorted(path.glob(f"*{CHANNEL_SUFFIX}"))
    if len(channels) == 1:
        return _of_channel(path, channels[0].name)
    if channels:
        raise UsageError(
            f"'{path}' has {len(channels)} channels", f"name one: {channels[0]}, for instance"
        )
    manifests = [path / "manifest.json"]
    if not manifests[0].is_file():
        manifests = sorted(path.glob("*.json"))
    if len(manifests) != 1:
        raise UsageError(
            f"'{path}' has no manifest.json and no channel",
            "`mpota manifest -o DIR` and `mpota publish DIR` make such directories",
        )
    return _of_manifest(manifests[0].name, _tree(path, manifests[0].name))


def _tree(directory: Path, first: str) -> dict[str, bytes]:
    """The files of a directory for a server, ``first`` among them."""
    files = {first: read_file(directory / first)}
    size = len(files[first])
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if name in files or not path.is_file() or path.is_symlink() or "/." in f"/{name}":
            continue
        size += path.stat().st_size
        if size > _MAX_DOWNLOAD_SIZE or len(files) > _MAX_FILES:
            raise MpotaError(
                f"'{directory}' holds more than {_MAX_DOWNLOAD_SIZE:,} bytes or "
                f"{_MAX_FILES:,} files",
                "give a directory with the release alone",
            )
        files[name] = path.read_bytes()
    return files


def _of_manifest(name: str, files: dict[str, bytes]) -> Offer:
    try:
        manifest = Manifest.from_bytes(files[name])
    except MpotaError as error:
        raise MpotaError(f"{name}: {error}", error.hint) from None
    app = None
    for payload in manifest.payloads:
        plain = payload.forms[-1]
        content = files.get(unquote(plain.url or ""))
        if payload.kind == "app" and plain.encoding is None and content:
            app = read_app(content, plain.url or name)
    signed = name.removesuffix(".json") + ".sig" in files
    version = f"{manifest.name} {manifest.version}" if manifest.name else name
    return Offer(name, RELEASE, name, files, version, app, manifest.chip, signed)


def _of_channel(directory: Path, name: str) -> Offer:
    files = _tree(directory, name)
    line = files[name].partition(b"\n")[0] + b"\n"
    try:
        channel = Channel.from_line(line)
    except MpotaError as error:
        raise MpotaError(f"{name}: {error}", error.hint) from None
    version = f"{channel.name} {channel.releases[0].version}" if channel.releases else channel.name
    return Offer(name, CHANNEL, name, files, version, is_signed=True, channel=channel)


def _download(url: str) -> Offer:
    name = _fit(unquote(urlsplit(url).path).rpartition("/")[2]) or "release"
    data = _get(url, _MAX_DOWNLOAD_SIZE)
    if data[:1] != b"{":
        return _of_file(name, data)
    manifest = Manifest.from_bytes(data[:MAX_SIZE])
    files = {name: data}
    for form in manifest.forms:
        if form.url is None:
            continue
        if urlsplit(form.url).scheme:
            raise MpotaError(
                f"{name} names {form.url}, which is on another server",
                "rehearse the bundle, or the directory that is published",
            )
        files[unquote(form.url)] = _get(urljoin(url, form.url), form.size)
    if url.endswith(".json"):
        with suppress(MpotaError):  # it is not signed
            files[name.removesuffix(".json") + ".sig"] = _get(url[:-5] + ".sig", 4096)
    return _of_manifest(name, files)


def _get(url: str, limit: int) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
            data: bytes = answer.read(limit + 1)
    except (OSError, urllib.error.URLError, ValueError) as error:
        raise MpotaError(f"{url}: {getattr(error, 'reason', error)}") from None
    if len(data) > limit:
        raise MpotaError(f"{url} is larger than {limit:,} bytes")
    return data
