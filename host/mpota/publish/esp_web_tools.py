"""ESP Web Tools, the script that flashes boards from a browser: as an npm package, pinned.

Its ``dist/web`` is the whole of it, in files that import each other and nothing from elsewhere.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from mpota.errors import MpotaError, UsageError
from mpota.storage.file import make_directory, read_file, write_file
from mpota.units import MiB

VERSION = "10.4.0"
PACKAGE = f"esp-web-tools@{VERSION}"
SHA512 = (
    "de9c24785166e458fb510a3c4893582b9457aed342a6ae97f50a08e9b313e060"
    "595a0ac9aa39f462f33d8a11bbe01b4ca121585df983b647a1bb17b9d0f4cc3d"
)
ENTRY = "install-button.js"
LICENSE = "LICENSE"
MAX_SIZE = 4 * MiB  # of the package, and of what is in it: 0.8 and 1.8 MB
TIMEOUT_S = 120

_FILE = f"esp-web-tools-{VERSION}.tgz"
_WEB = PurePosixPath("package/dist/web")
_HINT = "npm comes with Node.js; or give the unpacked package yourself: --esp-web-tools DIR"


def from_directory(directory: Path) -> dict[str, bytes]:
    """The files of the script, by name, from the unpacked package or its ``dist/web``.

    Raises UsageError if the script is not there.
    """
    for place in (directory / "dist" / "web", directory):
        if (place / ENTRY).is_file():
            files = {path.name: read_file(path) for path in sorted(place.glob("*.js"))}
            for license in (directory / LICENSE, place / LICENSE):
                if license.is_file():
                    files[LICENSE] = read_file(license)
            return files
    raise UsageError(
        f"'{directory}' is not ESP Web Tools: there is no {ENTRY} in it, nor in its dist/web",
        f"unpack what `npm pack {PACKAGE}` fetches, and give its directory 'package'",
    )


def from_npm(cache: Path) -> dict[str, bytes]:
    """The same from the package `PACKAGE`: out of ``cache``, into which npm fetches it once.

    Raises MpotaError if it cannot be fetched, or is not the one with the digest `SHA512`.
    """
    kept = find(cache)
    if kept is None:
        kept = fetch()
        keep(cache, kept)
    return _unpacked(kept)


def find(cache: Path) -> bytes | None:
    """The package if ``cache`` has it, its digest checked."""
    try:
        data = (cache / _FILE).read_bytes()
    except OSError:
        return None
    return data if _is_genuine(data) else None


def keep(cache: Path, package: bytes) -> None:
    """Put the package into ``cache``. Raises UsageError if it cannot be written."""
    make_directory(cache)
    write_file(cache / _FILE, package)


def fetch(npm: str = "npm") -> bytes:
    """The package, as the npm client gets it from wherever that is set up to. Raises MpotaError."""
    program = shutil.which(npm)
    if program is None:
        raise MpotaError(f"npm, which fetches {PACKAGE}, is not installed", _HINT)
    with tempfile.TemporaryDirectory(prefix="mpota-") as scratch:
        command = [program, "pack", PACKAGE, "--ignore-scripts", "--pack-destination", scratch]
        try:
            done = subprocess.run(
                command, cwd=scratch, capture_output=True, text=True, timeout=TIMEOUT_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise MpotaError(f"npm pack {PACKAGE}: {error}", _HINT) from None
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise MpotaError(f"npm pack {PACKAGE}: {last}", _HINT)
        found = sorted(Path(scratch).glob("*.tgz"))
        data = found[0].read_bytes() if found and found[0].stat().st_size <= MAX_SIZE else b""
    if not _is_genuine(data):
        raise MpotaError(
            f"npm pack {PACKAGE}: what came has not the SHA-512 {SHA512[:16]}...",
            "a registry that changes packages cannot be used for this: --esp-web-tools DIR",
        )
    return data


def _is_genuine(data: bytes) -> bool:
    return hashlib.sha512(data).hexdigest() == SHA512


def _unpacked(package: bytes) -> dict[str, bytes]:
    """The files in the package, whose bytes are known by their digest: they need no limits."""
    files = {}
    with tarfile.open(fileobj=io.BytesIO(package), mode="r:gz") as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            is_script = path.parent == _WEB and path.suffix == ".js"
            if is_script or path == _WEB.parents[1] / LICENSE:
                file = archive.extractfile(member)
                assert file is not None
                files[path.name] = file.read()
    return files
