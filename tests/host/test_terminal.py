"""What commands print: on a terminal of 80 columns all of it fits, into a pipe it is plain text."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from mpota.cli import build
from mpota.commands import _progress, _terminal
from mpota.commands import _report as report
from mpota.firmware.sample import build_app, build_firmware

from tests.support import sessions, terminal
from tests.support.terminal import COLUMNS, Screen

ROOT = Path(__file__).parents[2]
RESIZE = ("resize", "firmware.bin", "-f", "16M", "--layout", "ota", "--force")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what the commands below take."""
    path = tmp_path_factory.mktemp("here")
    (path / "firmware.bin").write_bytes(build_firmware("esp32"))
    (path / "new.bin").write_bytes(build_app("esp32", version="v1.27.0"))
    (path / "src" / "lib").mkdir(parents=True)
    (path / "src" / "lib" / ("a_name_of_some_length" * 3 + ".py")).write_text("x = 1\n")
    for words in (
        RESIZE,
        ("bundle", "new.bin", "--files", "src", "--name", "pump", "--version", "2.1"),
        ("fs", "put", "firmware-16MB-ota.bin", "src/lib/"),
        ("keygen", "release"),
    ):
        code, text = piped(*words, directory=path)
        assert code == 0, text
    return path


def piped(*words: str, directory: Path) -> tuple[int, str]:
    """Exit code and all output, which goes into pipes."""
    done = subprocess.run(
        [sys.executable, "-m", "mpota", *words],
        cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout.decode()


@cache
def on_terminal(words: tuple[str, ...], directory: Path) -> tuple[int, Screen]:
    return terminal.run(words, directory=directory)


OUTPUTS = [
    (*RESIZE, "-o", "again.bin", "--force"),  # what the others look at stays as it is
    ("show", "firmware.bin"),
    ("show", "firmware-16MB-ota.bin"),
    ("show", "new.bin"),
    ("check", "firmware-16MB-ota.bin"),
    ("check", "firmware.bin", "--as-app", "--against", "firmware-16MB-ota.bin"),
    ("resize", "firmware.bin", "--set", "factory=5M"),
    ("extract", "firmware.bin", "--force"),
    ("table", "firmware.bin"),
    ("fs", "ls", "firmware-16MB-ota.bin"),
    ("fs", "df", "firmware-16MB-ota.bin"),
    ("fs", "check", "firmware-16MB-ota.bin"),
    ("ls", "pump-2.1.bundle"),
    ("verify", "pump-2.1.bundle", "--key", "release.pub.pem"),
    ("delta", "firmware.bin", "new.bin", "--force"),
    ("show", "gone.bin"),
    ("pusch", "u0"),
    ("push", "nowhere", "new.bin"),
    ("deploy", "firmware.bin"),
    ("sample", "esp8266"),
]


@pytest.mark.parametrize("words", OUTPUTS, ids=" ".join)
def test_what_a_command_prints_fits_a_terminal_of_80_columns(
    here: Path, words: tuple[str, ...]
) -> None:
    _, screen = on_terminal(words, here)
    for line in screen.lines:
        name = re.search(r"a_name_of_some_length", line)
        assert len(line) <= COLUMNS or name, line
    assert screen.wraps == 0 or "a_name_of_some_length" in screen.text


@pytest.mark.parametrize("words", OUTPUTS, ids=" ".join)
def test_into_a_pipe_goes_plain_text_and_no_line_is_broken(
    here: Path, words: tuple[str, ...]
) -> None:
    code, text = piped(*words, directory=here)
    assert all(line.isprintable() for line in text.splitlines())
    assert "\x1b" not in text
    shown_code, screen = on_terminal(words, here)
    assert shown_code == code
    assert re.sub(r"\s+|-+", "", screen.text) == re.sub(r"\s+|-+", "", text), "the same words"


def verbs() -> list[tuple[str, ...]]:
    """All commands, and those in groups."""
    group = build()
    context = click.Context(group, info_name="mpota")
    found: list[tuple[str, ...]] = [()]
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        found.append((name,))
        if isinstance(command, click.Group):
            found += [(name, inner) for inner in command.list_commands(context)]
    return found


_ALL_HELP = """
import sys
from mpota.cli import main
for verb in sys.argv[1:]:
    try:
        main([*verb.split(), "--help"])
    except SystemExit as end:
        assert not end.code, verb
"""


def test_all_help_fits_a_terminal_of_80_columns() -> None:
    words = [" ".join(verb) for verb in verbs()]
    code, screen = terminal.run(words, program=("-c", _ALL_HELP))
    assert code == 0, screen.text
    assert screen.text.count("Usage:") == len(words)
    assert screen.wraps == 0
    assert max(map(len, screen.lines)) <= COLUMNS


def test_help_in_a_pipe_has_no_boxes(tmp_path: Path) -> None:
    code, text = piped("--help", directory=tmp_path)
    assert code == 0
    assert text.isascii()
    assert (
        "\nReleases:\n  init      a project to start from, with a key and all that releases take\n"
        in text
    )


def test_tables_of_readme_and_site_fit_80_columns_and_long_ones_120() -> None:
    """They are what is printed: docs/test_sessions.py."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for block in sessions.blocks(page.read_text()):
            for step in block:
                tables = re.findall(r"(?m)^  .*\n  -[- ]*\n(?:  .*\n)*", "\n".join(step.expected))
                limit = 120 if "mpota deploy" in step.command else COLUMNS
                assert all(len(line) <= limit for line in "".join(tables).splitlines()), page


# --- colours


@pytest.mark.parametrize(
    ("words", "coloured"),
    [
        (("show", "gone.bin"), "\x1b[1;31mmpota:\x1b[0m cannot read"),
        (("pusch",), "\x1b[36m  hint:\x1b[0m mpota push"),
        (("check", "firmware-16MB-ota.bin"), "\x1b[32mfirmware-16MB-ota.bin: 'ota_0' boots\x1b[0m"),
        (("check", "firmware.bin", "--as-app"), "\x1b[1;31mfirmware.bin: nothing boots\x1b[0m"),
        (RESIZE, "\x1b[1;33mshrunk, content reset\x1b[0m"),
        (RESIZE, "\x1b[36mwas factory, grown\x1b[0m"),
        (RESIZE, "\x1b[32mwritten:\x1b[0m firmware"),
        (RESIZE, "\x1b[34mnote:\x1b[0m otadata"),
    ],
)
def test_errors_verdicts_and_changes_have_a_colour(
    here: Path, words: tuple[str, ...], coloured: str
) -> None:
    assert coloured in on_terminal(words, here)[1].output


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_who_wants_no_colours_gets_none(here: Path, env: dict[str, str]) -> None:
    for words in (RESIZE, ("show", "gone.bin"), ("check", "firmware.bin", "--as-app")):
        assert "\x1b" not in terminal.run(words, directory=here, env=env)[1].output


def test_no_color_that_is_empty_says_nothing(here: Path) -> None:
    assert "\x1b" in terminal.run(("show", "gone.bin"), env={"NO_COLOR": ""})[1].output


# --- tables


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    screen = Terminal()
    streams = SimpleNamespace(stdout=screen, stderr=screen, maxsize=sys.maxsize)
    monkeypatch.setattr(report, "sys", streams)  # not sys.stdout: pytest changes that itself
    monkeypatch.setattr(_progress, "sys", streams)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    return screen


def test_a_long_last_column_goes_on_below_itself(screen: Terminal) -> None:
    report.print_table(("Slot", "Why"), [("ota_0", "word " * 40)])
    rows = [line for line in screen.getvalue().splitlines() if "word" in line]
    assert len(rows) == 3
    assert max(map(len, rows)) <= COLUMNS
    assert {line.index("word") for line in rows} == {9}


@pytest.mark.parametrize("size", [16, 60, 255])
def test_long_words_and_many_columns_fit(screen: Terminal, size: int) -> None:
    report.print_table(
        ("Board", "Port", ">Seconds", "What changed"),
        [("a name " * 5, "x" * size, "12.5", "ota_1: v1.27.0; 12 files")],
    )
    assert max(map(len, screen.getvalue().splitlines())) <= COLUMNS
    assert "12.5" in screen.getvalue()


def test_numbers_are_never_broken(screen: Terminal) -> None:
    number = "1,234,567,890,123"
    report.print_table((">Size",) * 6, [(number,) * 6])
    assert screen.getvalue().count(number) == 6


def test_a_command_to_paste_is_not_broken(screen: Terminal) -> None:
    report.say("x" * 70 + " `mpota extract FIRMWARE` takes it out of a merged file")
    assert "`mpota extract FIRMWARE`" in screen.getvalue()
    report.say("import ota; ota.update.from_file('http://a')  " * 3, is_whole=True)
    assert len(screen.getvalue().splitlines()[-1]) > COLUMNS


# --- progress


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_progress, "time", clock)
    return clock


def test_progress_is_one_line_with_bytes_rate_and_time_left(screen: Terminal, clock: Clock) -> None:
    with report.progress("writing ota_0", 2 << 20) as update:
        update(0)
        clock.now += 4
        update(1 << 20)
        (line,) = Screen(screen.getvalue()).lines
    assert re.fullmatch(r"writing ota_0  =+ +50%  1\.00 of 2\.00 MiB +256 KiB/s +0:04 left", line)
    assert len(line) < COLUMNS
    assert Screen(screen.getvalue()).lines == [""], "gone when done"


def test_bytes_that_were_there_before_make_no_rate(screen: Terminal, clock: Clock) -> None:
    with report.progress("sending new.bin", 2 << 20) as update:
        update(1 << 20)
        clock.now += 1
        update((1 << 20) + (64 << 10))
        (line,) = Screen(screen.getvalue()).lines
    assert " 53% " in line
    assert "64 KiB/s" in line
    assert "0:15 left" in line


def test_all_done_the_line_is_gone_though_the_work_goes_on(screen: Terminal, clock: Clock) -> None:
    with report.progress("sending new.bin", 1 << 20) as update:
        update(0)
        clock.now += 1
        update(1 << 20)
        report.say("restarting")
        assert Screen(screen.getvalue()).lines == ["restarting", ""]


def test_lines_go_above_the_one_at_the_bottom(screen: Terminal, clock: Clock) -> None:
    with report.progress("sending new.bin", 1 << 20) as update:
        update(1 << 19)
        report.say("the board does not answer; again in 1 s")
        lines = Screen(screen.getvalue()).lines
    assert lines[0] == "the board does not answer; again in 1 s"
    assert lines[1].startswith("sending new.bin  ====")
    assert len(lines) == 2


def test_an_amount_that_nobody_knows_has_no_bar(screen: Terminal, clock: Clock) -> None:
    with report.progress("sending http://server/x", 0) as update:
        update(0, 0)
        clock.now += 2
        update(64 << 10, 0)
        (line,) = Screen(screen.getvalue()).lines
    assert line == "sending http://server/x  64 KiB    32 KiB/s"


def test_what_takes_a_while_is_told_until_it_is_done(screen: Terminal) -> None:
    with report.doing("connecting to the board on u0"):
        assert Screen(screen.getvalue()).lines == ["connecting to the board on u0 ..."]
    assert Screen(screen.getvalue()).lines == [""]


def test_without_a_terminal_there_is_no_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with report.progress("writing ota_0", 100) as update, report.doing("connecting"):
        update(50)
    assert capsys.readouterr() == ("", "")


def test_what_goes_into_a_file_goes_there_though_progress_is_shown(
    here: Path, tmp_path: Path
) -> None:
    code = (
        "from mpota.commands import _report as report\n"
        "with report.progress('x', 10) as update: update(5); report.say('line')\n"
    )
    path = tmp_path / "code.py"
    path.write_text(code)
    with open(tmp_path / "out", "wb") as out:
        env = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
        master, slave = os.openpty()
        subprocess.run([sys.executable, path], stdout=out, stderr=slave, env=env, check=True)
        os.close(slave)
        shown = os.read(master, 10_000)
        os.close(master)
    assert (tmp_path / "out").read_text() == "line\n"
    assert b"50%" in shown
    assert b"line" not in shown


@pytest.mark.parametrize("columns", ["0", "1", "40", "79", "300", "x", ""])
def test_any_width_is_borne(
    monkeypatch: pytest.MonkeyPatch, screen: Terminal, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    width = _terminal.width_of(screen)
    assert width is not None
    assert width >= 40
    with report.progress("a long name of a thing " * 4, 1 << 22) as update:
        update(1 << 21)
    report.print_table(("Name", ">Size"), [("word " * 30, "1")])
    assert all(len(line) <= width for line in Screen(screen.getvalue(), width).lines)
