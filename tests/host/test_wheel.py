"""An installed mpota has all that it needs: the package for boards, and the partition tables."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.firmware_files import small_firmware

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module", name="installed")
def _installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel, built from a copy so that the checkout stays clean."""
    directory = tmp_path_factory.mktemp("wheel")
    source = directory / "source"
    for name in ("host", "device", "partitions"):
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(REPOSITORY / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        if (REPOSITORY / name).exists():
            shutil.copy(REPOSITORY / name, source)
        else:
            (source / name).touch()
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", directory, source]
    subprocess.run(build, check=True, timeout=300)
    (wheel,) = directory.glob("*.whl")
    target = directory / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def run_installed(installed: Path, code: str) -> str:
    # -S leaves out .pth files, and with them an editable install; the path finds the others.
    paths = [str(installed), *(p for p in sys.path if "site-packages" in p)]
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {paths!r}\n{code}"],
        capture_output=True,
        text=True,
        cwd=installed,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_carries_every_module_table_and_the_package_for_boards(installed: Path) -> None:
    code = "from mpota.resources import data_directory as d; print(d('device'), d('partitions'))"
    device, partitions = map(Path, run_installed(installed, code).split())
    source = installed.parent / "source"
    assert installed in device.parents
    assert installed in partitions.parents
    for carried, origin, patterns in (
        (device, source / "device", ("ota/*.py", "ota/*.json", "web/*")),
        (partitions, source / "partitions", ("*.csv",)),
        (
            installed / "mpota",
            source / "host" / "mpota",
            ("**/*.py", "**/*.html", "**/*.js", "py.typed"),
        ),
    ):
        wanted = {
            p.relative_to(origin): p.read_bytes()
            for pattern in patterns
            for p in origin.glob(pattern)
            if "__pycache__" not in p.parts
        }
        assert wanted
        assert {name for name in wanted if not (carried / name).exists()} == set()
        assert all((carried / name).read_bytes() == data for name, data in wanted.items())


def test_the_wheel_and_what_it_installs_have_the_version_of_the_board(installed: Path) -> None:
    (metadata,) = installed.glob("*.dist-info/METADATA")
    stated = re.search(r"^Version: (.+)$", metadata.read_text(), re.MULTILINE)
    source = (REPOSITORY / "device/ota/__init__.py").read_text()
    assert stated
    assert f'\n__version__ = "{stated[1]}"\n' in source
    code = "import mpota.cli; mpota.cli.main(['--version'])"
    assert run_installed(installed, code) == f"mpota, version {stated[1]}\n"


def test_the_installed_command_resizes_with_a_carried_table(
    installed: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "in.bin", tmp_path / "out.bin"
    source.write_bytes(small_firmware())
    arguments = ["resize", str(source), "-f", "8M", "--layout", "8MB-ota", "-o", str(out)]
    printed = run_installed(
        installed,
        f"import mpota.cli; assert 'site/' in mpota.__file__; mpota.cli.main({arguments!r})",
    )
    assert "ota_1" in printed
    assert out.exists()


def test_the_installed_package_for_boards_comes_in_parts(installed: Path) -> None:
    code = (
        "from mpota.release.ota_package import modules_of, package, part_names\n"
        "from mpota.mpy_cross import MpyFormat\n"
        "files = package(MpyFormat(6, 3, None), False)\n"
        "names = [f'{name}.py' for name in modules_of(part_names())]\n"
        "print(sorted(files) == sorted([*names, 'web.gz']), len(files))"
    )
    count = len([*(REPOSITORY / "device/ota").glob("*.py"), "web.gz"])
    assert run_installed(installed, code) == f"True {count}\n"
