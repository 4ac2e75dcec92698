"""What is pushed, how, and what came of it: the same for every way to a board."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mpota.errors import MpotaError, UsageError
from mpota.firmware.firmware import App, read_app
from mpota.formats import frames
from mpota.formats.app_desc import find_micropython
from mpota.formats.bundle import Bundle, decode, is_bundle
from mpota.formats.manifest import Manifest
from mpota.formats.payloads import APP, FILES
from mpota.formats.thin import file_id
from mpota.storage.file import read_file
from mpota.units import short_digest


class RefusedError(MpotaError):
    """The board did not take the update, and goes on with the app that it has.

    ``code`` is that of its OTAError.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text, _HINTS.get(code))
        self.code = code


class LostLinkError(MpotaError):
    """A board that listens cannot be heard any more."""


class RolledBackError(MpotaError):
    """The new app was switched to and did not stay: the former one runs."""

    exit_code = 3


class UnhealthyError(RolledBackError):
    """The new app ran, its health check failed, and it was given up."""

    exit_code = 4


class UnconfirmedError(MpotaError):
    """The update was switched to, and then the board was lost: its next boots decide."""

    exit_code = 5


# The app image with a digest (hex), where it is known.
FindBase = Callable[[str], bytes | None]

# The code of a board that cannot make the whole update of what it was sent.
NOT_LESS_CODES = ("base", "frame", "memory", "no-form", "part")

_HINTS = {
    "base": "it may run already: mpota status PORT tells; the whole image can always be pushed",
    "unconfirmed": "confirm it, or let a reset roll it back; --force updates all the same",
    "failed-version": "--force installs it again",
    "too-long": "mpota resize makes larger slots",
    "no-slot": "mpota resize PORT --layout ota",
    "unsigned": "mpota bundle --key makes a signed release; a signed image is taken where "
    "ota.keys.allow_images(True) was said on the board",
    "counter": "mpota bundle without --counter takes the time: each release is above those before",
    "downgrade": "mpota bundle --allow-downgrade makes a release that may go back",
    "no-chain": "make the release anew with this mpota: mpota bundle, or mpota manifest",
    "format": "mpota install PORT brings a later ota onto the board",
    "secure-version": "build the app with the secure_version of the one that runs, or a higher one",
    "busy": "another update is under way on the board: wait for its end, or restart the board",
    "memory": "let the app free memory first; compiled modules (mpota install) take half as much",
    "slow": "a connection that brings more, or the file from here: mpota push PORT FILE",
}


@dataclass(frozen=True)
class Package:
    """What is to be pushed: a file, and the app in it; or a URL for the board to fetch.

    ``app``: what it brings, decoded, where the desk can tell; it stands in ``data`` as it will in
    a slot, ``plain_size`` bytes from ``app_offset`` on, 0 if it is encoded. ``release``: what a
    board remembers of a bundle. Without an app ``brings_app`` tells whether it has none, or one
    that only the board can decode.
    ``parts``: of the ota package, what a board needs to take it. ``bundle``: what ``data`` was
    made from. ``suit``: of a release that is made on the fly, the same for a board that runs the
    app with a digest (hex), which may be known: `FindBase`.
    """

    name: str
    data: bytes = b""
    app: App | None = None
    app_offset: int = 0
    plain_size: int = 0
    release: Mapping[str, Any] | None = None
    url: str | None = None
    brings_app: bool = True
    parts: tuple[str, ...] = ()
    bundle: Bundle | None = None
    suit: Callable[[str, FindBase], Package] | None = None

    @classmethod
    def open(cls, source: str) -> Package:
        """A package from an app image, a merged firmware (of which the app is taken), a compressed
        image, a delta, a bundle or an http(s) URL.

        Raises MpotaError for a file that is none of these, or damaged.
        """
        if source.startswith(("http://", "https://")):
            return cls(source, url=source)
        path = Path(source)
        return cls.of_data(path.name, read_file(path))

    @classmethod
    def of_data(cls, name: str, data: bytes) -> Package:
        """The same from what is in such a file."""
        if is_bundle(data):
            return cls._of_bundle(name, data)
        if data.startswith(frames.MAGIC):
            return cls._of_frames(name, data)
        app = read_app(data, name)
        image = app.to_bytes()
        return cls(name, image, app, plain_size=len(image))

    @classmethod
    def _of_frames(cls, name: str, data: bytes) -> Package:
        try:
            encoded = frames.Frames.from_bytes(data)
            content = None if encoded.base else frames.decompress(encoded)
        except MpotaError as error:
            raise MpotaError(f"{name}: {error}", error.hint) from None
        app = read_app(content, name) if content else None
        return cls(name, data, app, parts=("encoded",))

    @classmethod
    def _of_bundle(cls, name: str, data: bytes) -> Package:
        return cls.of_bundle(name, Bundle.from_bytes(data), data)

    @classmethod
    def of_bundle(cls, name: str, bundle: Bundle, data: bytes) -> Package:
        """``data``: the bundle as it is to be sent."""
        manifest = bundle.manifest
        is_encoded = any(form.encoding not in (None, "chained") for form in manifest.forms)
        package = cls(
            name,
            data,
            release=_remembered(manifest),
            brings_app=any(payload.kind == APP for payload in manifest.payloads),
            parts=("release", "encoded") if is_encoded else ("release",),
            bundle=bundle,
        )
        for payload in manifest.payloads:
            if payload.kind != APP:
                continue
            for form in reversed(payload.forms):  # the plain one comes last
                what = f"{name}: {form.member}"
                image = form.member and decode(form, payload, bundle.members[form.member], what)
                if not image:
                    continue
                app = read_app(image, what)
                if form.encoding:
                    return replace(package, app=app)
                offset = data.index(image)
                return replace(package, app=app, app_offset=offset, plain_size=len(image))
        return package

    def without(self, there: Collection[bytes]) -> Package | None:
        """The same without files that the board has, by their ids; None where that saves nothing.

        A board that has not all of them refuses it with code "base".
        """
        data = self.bundle.thinned(there) if self.bundle and there else None
        if data is None:
            return None
        offset = 0
        if self.app and self.plain_size:
            offset = data.index(self.app.to_bytes())
        return replace(self, data=data, app_offset=offset)

    def told(self, there: Collection[bytes]) -> str:
        """What of its files is sent to a board that has some, in words."""
        files = self.bundle.files if self.bundle else {}
        count = sum(file_id(name, data) not in there for name, data in files.items())
        return f"{count} file{'' if count == 1 else 's'} of {len(files)}"

    @property
    def digest(self) -> str | None:
        """The SHA-256 that the app image carries, in hex."""
        image = self.app.image if self.app else None
        return image.digest.hex() if image and image.digest else None

    @property
    def words(self) -> str:
        """Its name, and the digest of its app, if it is known, as people know it."""
        return self.name + (f" (digest {short_digest(self.digest)})" if self.digest else "")

    @property
    def version(self) -> str:
        """MicroPython's, or the release's."""
        if self.release:
            if "name" not in self.release:
                return f"{self.name} (keys)"
            return f"{self.release['name']} {self.release['version']}"
        found = find_micropython(self.app.image.data).version if self.app else None
        return found or self.name


def _remembered(manifest: Manifest) -> dict[str, Any]:
    """What a board's record says of a release (device/ota/policy.py: _entry), as far as that tells
    one from another. One of keys alone has no name there."""
    found: dict[str, Any] = {"counter": manifest.counter}
    if manifest.payloads:
        found |= {"name": manifest.name, "version": manifest.version}
    else:
        found |= {"add": list(manifest.add_keys), "retire": list(manifest.retire_keys)}
    for payload in manifest.payloads:
        if payload.kind == FILES:
            found["sha256"] = payload.sha256
    return found


@dataclass(frozen=True)
class HealthCheck:
    """How the health of a new app is told: an expression that must be true, or a script that must
    end without an exception, tried again for ``timeout_s``."""

    source: str = ""
    is_script: bool = False
    timeout_s: float = 30.0

    @classmethod
    def parse(cls, text: str | None, timeout_s: float) -> HealthCheck:
        """``text`` is an expression, or the name of a ``.py`` file.

        Raises UsageError for what is no Python: a board would run it only after the switch.
        """
        if text is None:
            return cls(timeout_s=timeout_s)
        if not text.endswith(".py"):
            _check_syntax(text, f"the check {text!r} is no expression", "eval")
            return cls(text, False, timeout_s)
        path = Path(text)
        try:
            source = read_file(path).decode("utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"{path.name}: {error}") from None
        _check_syntax(source, f"{path.name} is no Python", "exec")
        return cls(source, True, timeout_s)


def _check_syntax(source: str, what: str, mode: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(source, mode=mode)
    except SyntaxError as error:
        raise UsageError(f"{what}: {error.msg} (line {error.lineno or 1})") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"{what}: {error or 'it is nested too deeply'}") from None


@dataclass(frozen=True)
class Options:
    """How to push. ``tell`` hears a line about what begins now, ``progress`` the bytes that the
    board has, and of how many: 0, as long as only the board knows.

    At a REPL: ``check`` proves the health of the new app, ``settle_s`` of silence mean that it has
    started, ``force`` installs what runs already, or has failed before. ``find_base`` gives the app
    image that carries a digest (hex), or None: where one is found to run, a delta is sent.

    A board that listens: ``secret`` is what it asks for, if it does, 16 bytes or more; with
    ``is_old_secret`` it may be shorter, for a board with ota 0.1. ``restart``: into the update, at
    once. ``attempts``: connections in a row that fail, or bring nothing forward, before it is given
    up; ``pause_s`` before the second one, twice as long before each further one. ``confirm_s``:
    what runs there already is not sent again, and a restart is waited for until the board has
    confirmed; 0: neither. Over Bluetooth: ``pair`` with it first, look for it ``find_s``.
    """

    check: HealthCheck = HealthCheck()
    settle_s: float = 3.0
    force: bool = False
    find_base: FindBase = lambda digest: None
    secret: bytes | None = None
    is_old_secret: bool = False
    restart: bool = True
    attempts: int = 5
    pause_s: float = 1.0
    pair: bool = False
    find_s: float = 10.0
    confirm_s: float = 0.0
    progress: Callable[[int, int], object] = lambda done, total: None
    tell: Callable[[str], object] = lambda text: None


@dataclass(frozen=True)
class Welcome:
    """What a board that listens says of itself."""

    version: str
    chip_id: int
    signed_only: bool
    protocol: int


@dataclass(frozen=True)
class Pushed:
    """A completed update: ``version`` is what was brought, ``sent_size`` bytes went out for it,
    some of them more than once.

    At a REPL: ``slot`` runs it, confirmed; it did so already unless ``is_new``; ``is_app``: a new
    app in that slot, else files, certificates, data or keys for the app that ran before.
    ``console`` is what the board printed from its reset on, ``was_restarted``.

    A board that listens: ``board``, in ``connections``. It restarts into the update, or has
    verified and selected it and ``needs_restart``; confirming is its app's business, and
    ``is_confirmed`` where it was waited for.
    """

    version: str
    slot: str | None = None
    is_new: bool = True
    is_app: bool = True
    was_restarted: bool = True
    sent_size: int = 0
    console: str = ""
    board: Welcome | None = None
    needs_restart: bool = False
    connections: int = 0
    is_confirmed: bool = False

    def __str__(self) -> str:
        """What has come of an update at a REPL, in a sentence."""
        if not self.is_new:
            return f"{self.slot} runs {self.version} already, confirmed: nothing to do"
        if self.is_app:
            return f"{self.slot} runs {self.version}, confirmed"
        if self.was_restarted:
            return f"{self.slot} runs with what {self.version} brought, confirmed"
        return f"{self.version} is installed; {self.slot} runs on, no restart is needed"
