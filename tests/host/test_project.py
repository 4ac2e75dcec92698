"""A directory as a release: its name and version, and which of its files are meant for a board."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import ANY

import pytest
from mpota.errors import MpotaError, UsageError
from mpota.push.loop import Made
from mpota.release.build import Contents
from mpota.release.project import Project, as_version, version_of_description

from tests.support import cable_boards, releases


def write(directory: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return directory


def toml(text: str) -> dict[str, str | bytes]:
    return {"main.py": "import app", "pyproject.toml": text}


def sent(project: Project) -> list[str]:
    """The files that go along."""
    package = Made.of(project, ()).package
    assert package.bundle
    return sorted(package.bundle.files)


# --- name and version


@pytest.mark.parametrize(
    ("files", "name", "version"),
    [
        (toml('[tool.mpota]\nname = "pump"\nversion = "1.2"'), "pump", "1.2"),
        (toml('[project]\nname = "pump"\nversion = "1.2.0rc1"'), "pump", "1.2.0-rc1"),
        (toml('[project]\nname = "a"\n[tool.mpota]\nname = "b"'), "b", "0"),
        (toml('[project]\nname = "pump"\ndynamic = ["version"]'), "pump", "0"),
        ({"package.json": '{"name": "@me/pump", "version": "2.0.1"}'}, "pump", "2.0.1"),
        ({"package.json": '{"urls": [], "version": "0.3"}'}, "my-project", "0.3"),
        ({}, "my-project", "0"),
        (toml('[project]\nname = "§"\nversion = "latest"'), "my-project", "0"),
    ],
)
def test_name_and_version_come_from_the_projects_files(
    tmp_path: Path, files: dict[str, str | bytes], name: str, version: str
) -> None:
    directory = write(tmp_path / "my project!", {"main.py": "x = 1"} | files)
    directory = directory.rename(tmp_path / "my§project")
    project = Project.read(directory)
    assert (project.name, project.version) == (name, version)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("1.2.0", "1.2.0"),
        ("v1.2", "1.2"),
        ("1.2.0.dev3", "1.2.0-dev3"),
        ("1.0rc1", "1.0-rc1"),
        ("1.0+local.7", "1.0-local.7"),
        ("1.2.3.4.5", "1.2.3.4-5"),
        ("latest", None),
        ("", None),
    ],
)
def test_a_declared_version_becomes_one_that_boards_compare(text: str, version: str | None) -> None:
    assert as_version(text) == version


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("v1.2.0-0-gabc1234", "1.2.0"),
        ("1.2-0-gabc1234", "1.2"),
        ("v1.2.0-5-gabc1234", "1.2.0.5-gabc1234"),
        ("v1.2-5-gabc1234-dirty", "1.2.0.5-gabc1234.dirty"),
        ("v1.2.0-0-gabc1234-dirty", "1.2.0.0-gabc1234.dirty"),
        ("v1.2.0-rc1-0-gabc1234", "1.2.0-rc1"),
        ("v1.2.0-rc1-3-gabc1234", "1.2.0-rc1.3.gabc1234"),
        ("v1.2.3.4-3-gabc1234", "1.2.3.4-3.gabc1234"),
        ("0.0.0-42-gabc1234", "0.0.0.42-gabc1234"),
        ("nightly-3-gabc1234", None),
    ],
)
def test_what_git_describes_becomes_a_version_above_its_tag(text: str, version: str | None) -> None:
    assert version_of_description(text) == version


def test_without_a_declared_version_git_tells_it(tmp_path: Path) -> None:
    directory = write(tmp_path / "pump", {"main.py": "x = 1"})

    def git(*words: str) -> None:
        options = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        subprocess.run(["git", *options, *words], cwd=directory, check=True, capture_output=True)

    git("init", "-q")
    assert Project.read(directory).version == "0"  # no commit yet
    git("add", ".")
    git("commit", "-qm", "first")
    assert Project.read(directory).version.startswith("0.0.0.1-g")
    git("tag", "-m", "x", "v1.4")
    assert Project.read(directory).version == "1.4"
    write(directory, {"main.py": "x = 2"})
    assert Project.read(directory).version.endswith(".dirty")
    git("commit", "-qam", "second")
    assert Project.read(directory).version.startswith("1.4.0.1-g")


# --- what goes along


def test_what_belongs_to_tools_and_editors_stays_at_home(tmp_path: Path) -> None:
    kept = {"main.py": "a", "lib/pump.py": "b", "web/index.html": "c", "lib/empty.py": ""}
    left = {
        ".git/config": "x",
        ".vscode/settings.json": "x",
        "__pycache__/main.pyc": "x",
        "lib/.pump.py.swp": "x",
        "main.py~": "x",
        "old.bundle": "x",
        "package.json": "{}",
        "tests/test_pump.py": "x",
        "README.md": "x",
        "docs/deep/page.md": "x",
        **toml('[tool.mpota]\nexclude = ["tests", "*.md"]'),
    }
    project = Project.read(write(tmp_path, left | kept))
    assert sent(project) == sorted(kept)


def test_the_directories_that_are_named_are_laid_over_each_other(tmp_path: Path) -> None:
    files = {
        "src/main.py": "a",
        "vendor/lib/driver.py": "b",
        "README": "x",
        "pyproject.toml": '[tool.mpota]\nfiles = ["src", "vendor"]',
    }
    assert sent(Project.read(write(tmp_path, files))) == ["lib/driver.py", "main.py"]


def test_the_key_of_a_project_signs_it_and_stays_at_home(tmp_path: Path) -> None:
    pem = releases.key().to_pem()
    files = {"release.pem": pem, **toml('[tool.mpota]\nkey = "release.pem"')}
    project = Project.read(write(tmp_path, files))
    assert project.keys == (tmp_path / "release.pem",)
    made = Made.of(project, (releases.key(),))
    assert sent(project) == ["main.py"]
    assert made.package.bundle
    assert made.package.bundle.signature


def test_a_private_key_that_nobody_named_is_not_packed(tmp_path: Path) -> None:
    project = Project.read(write(tmp_path, {"main.py": "x", "my.pem": releases.key().to_pem()}))
    with pytest.raises(MpotaError, match="holds a private key"):
        Made.of(project, ())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[tool.mpota", "pyproject.toml is not TOML"),
        ('[tool.mpota]\nfile = "x"', "has 'file', it knows name, version, files"),
        ("[tool.mpota]\nmpy = 1", "mpy = '1' is not true or false"),
        ("[tool.mpota]\nexclude = [1]", "exclude = '[1]' is not a text or a list of texts"),
        ('[tool.mpota]\nname = ""', "name = '' is not a text"),
        (
            '[tool.mpota]\nname = "a/b"',
            "cannot have the name 'a/b': it must be 1 to 64 letters",
        ),
        (
            '[tool.mpota]\nversion = "one"',
            "cannot have the version 'one': it must be one to",
        ),
        ('[tool.mpota]\ndata = "x"', "data = 'x' is not a table"),
        ("a" + ".a" * 100 + " = 1", "more dots than any key needs"),
        ("[" * 5000, "pyproject.toml is n"),
        ("#" * 300_000, "more than 262,144 bytes"),
    ],
)
def test_a_project_that_cannot_be_read_says_what_and_where(
    tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(MpotaError, match=r".*") as raised:
        Project.read(write(tmp_path, toml(text)))
    assert words in str(raised.value)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, b"\xff"])
def test_a_package_json_that_is_none_is_named(tmp_path: Path, text: str | bytes) -> None:
    with pytest.raises(UsageError, match=r"package\.json"):
        Project.read(write(tmp_path, {"main.py": "x", "package.json": text}))


def test_an_empty_project_is_none(tmp_path: Path) -> None:
    project = Project.read(write(tmp_path, {"pyproject.toml": ""}))
    with pytest.raises(MpotaError, match="the directories hold no files"):
        Made.of(project, ())


# --- the app in it


def with_app(directory: Path) -> Project:
    files = {
        "main.py": "x",
        "app.bin": cable_boards.NEW_APP,
        "pyproject.toml": '[tool.mpota]\nname = "pump"\nversion = "1"\nfirmware = "app.bin"',
    }
    return Project.read(write(directory, files))


def forms(project: Project, digest: str, base: bytes | None) -> list[tuple[str, str | None]]:
    package = Made.of(project, ()).package
    assert package.suit
    assert package.release == {"name": "pump", "version": "1", "sha256": package.bundle and ANY}
    suited = package.suit(digest, lambda found: base)
    assert suited.bundle
    payloads = suited.bundle.manifest.payloads
    return [(payload.kind, form.encoding) for payload in payloads for form in payload.forms]


def test_a_board_gets_of_the_app_what_it_lacks(tmp_path: Path) -> None:
    project = with_app(tmp_path)
    digest = cable_boards.NEW_APP[-32:].hex()
    old = cable_boards.OLD_APP
    assert sent(project) == ["main.py"]
    assert forms(project, digest, None) == [("files", None)]
    assert forms(project, old[-32:].hex(), old) == [("app", "delta"), ("files", None)]
    assert forms(project, old[-32:].hex(), None) == [("app", None), ("files", None)]
    assert forms(project, "", None) == [("app", None), ("files", None)]


def test_what_is_left_out_does_not_change_what_the_desk_bundles_otherwise(tmp_path: Path) -> None:
    from mpota.release.build import Sources

    write(tmp_path, {".hidden": "x", "pyproject.toml": "x", "main.py": "x"})
    content = Contents.read(Sources(directories=(tmp_path,))).contents[0]
    assert all(name in content.data for name in (b".hidden", b"pyproject.toml", b"main.py"))
