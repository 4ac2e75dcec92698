"""Apps that were sent to boards before, kept on this machine as bases for deltas."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from pathlib import Path

from mpota.errors import MpotaError
from mpota.firmware.firmware import App, read_app
from mpota.storage.file import read_file, write_file

_MAX_COUNT = 16  # the ones used last; an app is some 2 MB
_DIGEST = re.compile(r"[0-9a-f]{64}")


class KnownApps:
    """Files in ``folder``, named by the digest (hex) that the app image carries.

    Nothing here is needed: what cannot be read or written is as if it were not there.
    """

    def __init__(self, folder: Path | None = None, given: App | None = None) -> None:
        self._folder = folder or _cache_folder() / "apps"
        self._given = given

    @classmethod
    def with_firmware(cls, path: Path | None) -> KnownApps:
        """The known apps, and the app in a file. Raises MpotaError if the file has none."""
        return cls(given=read_app(read_file(path), path.name) if path else None)

    def find(self, digest: str) -> bytes | None:
        """The app image with that digest, None if it is unknown."""
        if self._given and _digest(self._given) == digest:
            return self._given.to_bytes()
        if not _DIGEST.fullmatch(digest):
            return None
        path = self._path(digest)
        with suppress(MpotaError, OSError):
            data = read_file(path)
            if _digest(read_app(data, path.name)) == digest:
                os.utime(path)
                return data
        return None

    def add(self, app: App | None) -> None:
        """Keep an app, and drop those that were not used for longest."""
        digest = _digest(app) if app else None
        if app is None or digest is None:
            return
        with suppress(MpotaError, OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            write_file(self._path(digest), app.to_bytes())
            files = sorted(self._folder.glob("*.bin"), key=lambda path: path.stat().st_mtime)
            for path in files[:-_MAX_COUNT]:
                path.unlink()

    def _path(self, digest: str) -> Path:
        return self._folder / f"{digest}.bin"


def _digest(app: App) -> str | None:
    return app.image.digest.hex() if app.image.digest else None


def _cache_folder() -> Path:
    """The user's cache directory, by the system's custom."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "mpota"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData/Local") / "mpota"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/mpota"
    return Path.home() / ".cache/mpota"
