"""Text of others on the terminal: whatever it is, it stays on its line and steers nothing."""

from __future__ import annotations

import ast
import json
import os
import pty
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Callable
from pathlib import Path

import mpota
import pytest
from mpota.commands import _report as report
from mpota.filesystem.littlefs import build
from mpota.formats.app_desc import APP_DESC_OFFSET
from mpota.formats.bundle import Bundle
from mpota.formats.image import Image
from mpota.formats.manifest import Manifest
from mpota.formats.tar import Member, write_tar
from mpota.release.build import Content, bundle
from mpota.text import shown
from mpota.units import KiB

from tests.support import littlefs_damage as damage
from tests.support.firmware_files import run, small_app, small_firmware

PACKAGE = Path(mpota.__file__).parent
EVIL = {
    "clears the screen": "\x1b[2J\x1b[H",
    "sets the title": "\x1b]0;owned\x07",
    "forges a line": "\nmpota: all is well",
    "returns": "\rsigned",
    "8-bit controls": "\x9b2J",
    "backspace and delete": "\b\x7f",
    "reversed": "\u202egnp.exe",
    "isolated": "\u2066x\u2069",
    "line separators": "a\u2028b\u2029c\x85d",
    "zero width": "pay\u200bpal\ufeff\u2060",
    "fillers": "a\u3164\u115f\ufe0f\u034f",
    "tags": "\U000e0041",
    "lone surrogates": "\ud800 \udfff",
    "bytes that are no text": "\udcff\udc9b",
    "markup": "[red]x[/red][link=file:///]y[/link]",
    "form feed": "\x0b\x0c",
}
each_evil = pytest.mark.parametrize("evil", EVIL.values(), ids=EVIL)


def assert_harmless(output: str) -> None:
    """Lines of visible characters only."""
    for character in output.replace("\n", ""):
        kind = unicodedata.category(character)
        assert kind[0] != "C", f"{character!r} in {output!r}"
        assert kind not in ("Zl", "Zp"), f"{character!r} in {output!r}"
        assert character not in "\u3164\u115f\ufe0f\u034f"


@each_evil
def test_what_is_shown_is_one_line_of_visible_characters(
    evil: str, hostile: Callable[..., None]
) -> None:
    hostile()
    text = shown(f"<{evil}>")
    assert_harmless(text)
    assert "\n" not in text
    assert (text[0], text[-1]) == ("<", ">")
    assert shown(text) == text
    text.encode("utf-8")


def test_every_code_point_is_visible_or_escaped() -> None:
    for number in range(sys.maxunicode + 1):
        text = shown(chr(number))
        assert text.isprintable()
        assert "\n" not in text


def test_words_of_all_languages_stay_as_they_are() -> None:
    for text in ("Gewächshaus 2", "温室", "теплица", "θερμοκήπιο", "צמח", "مشتل", "a\\b [x]"):
        assert shown(text) == text


def test_only_the_report_prints() -> None:
    """Whoever prints by another way would have to think of it anew."""
    homes = {"commands/_report.py", "commands/_progress.py"}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name in homes or name.startswith("virtual/"):  # a virtual board's console is its own
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Name):
                assert node.id != "print", f"{name}:{node.lineno}"
            if isinstance(node, ast.Attribute):
                written = ast.unparse(node)
                assert written not in ("click.echo", "click.secho", "sys.stderr.write")
                assert written != "sys.stdout.write", f"{name}:{node.lineno}"
                if written == "sys.stdout.buffer":
                    assert name == "commands/fs.py", "bytes as they are"


@each_evil
def test_tables_and_lines_hold_together(
    evil: str, capsys: pytest.CaptureFixture[str], hostile: Callable[..., None]
) -> None:
    hostile()
    report.print_table(("Name", ">dBm"), [(evil, "-50"), ("x", evil)])
    report.say(evil)
    report.say(evil, error=True)
    out, err = capsys.readouterr()
    assert_harmless(out + err)
    assert len(out.splitlines()) == 7
    assert len(err.splitlines()) == 1


@each_evil
def test_json_holds_the_text_itself_in_plain_ascii(
    evil: str, capsys: pytest.CaptureFixture[str], hostile: Callable[..., None]
) -> None:
    hostile()
    report.print_json({"name": evil})
    out = capsys.readouterr().out
    assert out.isascii()
    assert_harmless(out)
    assert json.loads(out) == {"name": evil}


@each_evil
def test_an_error_is_one_line(evil: str, tmp_path: Path, hostile: Callable[..., None]) -> None:
    hostile()
    if "\0" in evil or "\ud800" in evil:
        pytest.skip("no name of a file")
    result = run("show", tmp_path / f"x{evil}.bin")
    assert result.code == 2
    assert_harmless(result.err)
    assert len(result.err.splitlines()) == 1


@each_evil
def test_an_app_description_that_lies_in_wait(
    evil: str, tmp_path: Path, hostile: Callable[..., None]
) -> None:
    hostile()
    app = bytearray(small_app())
    for at, size in ((16, 32), (48, 32), (112, 32)):  # version, project_name, idf_ver
        start = APP_DESC_OFFSET + at
        app[start : start + size] = evil.encode("utf-8", "surrogatepass")[:size].ljust(size, b"\0")
    path = tmp_path / "evil.bin"
    path.write_bytes(repaired(bytes(app)))
    for arguments in (["show"], ["check", "--as-app"]):
        result = run(arguments[0], path, *arguments[1:])
        assert_harmless(result.out + result.err)
    facts = json.loads(run("show", path, "--json").out)
    assert facts["app"]["version"]


def repaired(app: bytes) -> bytes:
    return Image.from_bytes(app).sealed().data


@each_evil
def test_labels_that_are_no_names(evil: str, tmp_path: Path, hostile: Callable[..., None]) -> None:
    hostile()
    firmware = bytearray(small_firmware())
    at = firmware.index(b"phy_init", 0x7000)
    label = evil.encode("utf-8", "surrogateescape" if "\udcff" in evil else "surrogatepass")[:15]
    firmware[at : at + 16] = label.ljust(16, b"\0")
    path = tmp_path / "evil.bin"
    path.write_bytes(firmware)
    for command in (["show"], ["check"], ["table"], ["resize", "-f", "8M", "--dry-run"]):
        result = run(command[0], path, *command[1:])
        assert_harmless(result.out + result.err)


@each_evil
def test_file_names_in_a_file_system(
    evil: str, tmp_path: Path, hostile: Callable[..., None]
) -> None:
    hostile()
    image = bytearray(build({"/ab": b"content", "/ok": b""}, 64 * KiB))
    name = evil.encode("utf-8", "surrogateescape" if "\udcff" in evil else "surrogatepass")
    for start in (0, 4096):
        block = bytes(image[start : start + 4096])
        tags = [
            (kind, number, len(name) if content == b"ab" else size, name)
            if content == b"ab"
            else (kind, number, size, content)
            for kind, number, size, content in damage.log_of(block)
        ]
        image[start : start + 4096] = damage.block_of(int.from_bytes(block[:4], "little"), tags)
    path = tmp_path / "vfs.img"
    path.write_bytes(image)
    for command in (["ls"], ["tree"], ["check"], ["df"], ["cat", "/nothing"], ["rm", "/*"]):
        result = run("fs", command[0], path, *command[1:])
        assert_harmless(result.out + result.err)
        assert len((result.out + result.err).splitlines()) <= 8


@each_evil
def test_names_in_bundles_and_manifests(
    evil: str, tmp_path: Path, hostile: Callable[..., None]
) -> None:
    hostile()
    path = tmp_path / "x.bundle"
    data = evil.encode("utf-8", "surrogatepass")
    tree = write_tar([Member("main.py", b"1")])
    good = bundle(
        Manifest("pump", "1.0", (Content("files", "files.tar", tree).payload(),)),
        [Content("files", "files.tar", tree)],
    )
    name = data.decode("utf-8", "replace").replace("/", "").replace("\0", "")[:20]
    odd_member = write_tar([Member("manifest.json", good.manifest_bytes), Member(name, b"x")])
    odd_value = write_tar(
        [
            Member("manifest.json", good.manifest_bytes.replace(b"pump", data.replace(b"\n", b""))),
            Member("files.tar", tree),
        ]
    )
    odd_key = write_tar([Member("manifest.json", b'{"format": 1, "' + data + b'": 1}')])
    for archive in (odd_member, odd_value, odd_key):
        path.write_bytes(archive)
        for command in (["verify"], ["manifest"], ["sign", "--attach", path], ["show"]):
            result = run(command[0], path, *command[1:])
            assert_harmless(result.out + result.err)


def test_a_manifest_is_printed_byte_for_byte_unless_it_could_steer_a_terminal(
    tmp_path: Path,
) -> None:
    tree = write_tar([Member("main.py", b"1")])
    content = Content("files", "files.tar", tree)
    made = bundle(Manifest("pump", "1.0", (content.payload(),)), [content])
    path = tmp_path / "x.bundle"
    path.write_bytes(made.to_bytes())
    assert run("manifest", path).out.encode() == made.manifest_bytes
    odd = made.manifest_bytes.replace(b"{\n", b"{\r\x20\r\n", 1)
    assert json.loads(odd) == json.loads(made.manifest_bytes)
    path.write_bytes(Bundle(made.manifest, odd, None, made.members).to_bytes())
    out = run("manifest", path).out
    assert_harmless(out)
    assert json.loads(out) == json.loads(odd)


def test_a_file_is_shown_without_controls_on_a_terminal_and_as_it_is_elsewhere(
    tmp_path: Path,
) -> None:
    content = "first\x1b[2J\u202e\nsecond\n".encode() + b"\xff\x9b"
    path = tmp_path / "vfs.img"
    path.write_bytes(build({"/a": content}, 64 * KiB))
    command = [sys.executable, "-m", "mpota", "fs", "cat", str(path), "/a"]
    assert subprocess.run(command, capture_output=True, check=True).stdout == content
    assert on_a_terminal(command) == "first\\x1b[2J\\u202e\nsecond\n\\xff\\x9b\n"


def on_a_terminal(command: list[str]) -> str:
    """What a process writes to a terminal."""
    master, slave = pty.openpty()
    found = bytearray()

    def read() -> None:
        try:
            while data := os.read(master, 4096):
                found.extend(data)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    subprocess.run(command, stdout=slave, check=True)
    os.close(slave)
    reader.join()
    os.close(master)
    return found.decode().replace("\r\n", "\n")


def test_a_progress_bar_takes_no_markup() -> None:
    code = (
        "from mpota.commands import _report as report\n"
        "name = '[link=file:///x]a[/link]\\x1b]0;owned\\x07[/nothing]'\n"
        "with report.progress(name, 10) as done: done(5)\n"
    )
    printed = on_a_terminal(
        ["sh", "-c", 'COLUMNS=200 exec "$@" 2>&1', "sh", sys.executable, "-c", code]
    )
    assert "[link=file:///x]a[/link]\\x1b]0;owned\\x07[/nothing]" in printed
    assert "\x1b]0;owned" not in printed
    assert "\x1b]8;" not in printed
