"""The archive of the compiled package that `make release` makes (.ci/release.py)."""

from __future__ import annotations

import runpy
import shutil
import zipfile
from pathlib import Path

import mpota
import pytest

ROOT = Path(__file__).parents[2]
release = runpy.run_path(str(ROOT / ".ci" / "release.py"))


@pytest.fixture(name="package")
def _package(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROOT / "device" / "mpy", tmp_path / "ota-1.0"))


def test_the_archive_has_all_that_its_lists_name(package: Path, tmp_path: Path) -> None:
    target = tmp_path / "package.zip"
    release["pack"](package, target)
    release["check_archive"](target, mpota.__version__)
    with zipfile.ZipFile(target) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    assert content == {f"ota-1.0/{path.name}": path.read_bytes() for path in package.iterdir()}


def test_the_same_files_give_the_same_archive(package: Path, tmp_path: Path) -> None:
    release["pack"](package, tmp_path / "one.zip")
    for path in package.iterdir():
        path.touch()
    release["pack"](package, tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_an_archive_that_lacks_a_file_is_no_release(package: Path, tmp_path: Path) -> None:
    (package / "core.pack").unlink()
    release["pack"](package, tmp_path / "package.zip")
    with pytest.raises(SystemExit, match=r"names \['core\.pack'\]"):
        release["check_archive"](tmp_path / "package.zip", mpota.__version__)


def test_an_archive_of_another_version_is_no_release(package: Path, tmp_path: Path) -> None:
    release["pack"](package, tmp_path / "package.zip")
    with pytest.raises(SystemExit, match="version"):
        release["check_archive"](tmp_path / "package.zip", "9.9.9")


def test_a_version_without_a_section_of_changes_is_not_released() -> None:
    release["check_changelog"](mpota.__version__)
    with pytest.raises(SystemExit, match=r"## \[9\.9\.9\]"):
        release["check_changelog"]("9.9.9")
