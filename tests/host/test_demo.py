"""`mpota demo` is the first that anybody sees: it fits the screen, and tells what it has shown."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from mpota.firmware import sample
from mpota.virtual import stock

from tests.support import terminal
from tests.support.terminal import COLUMNS, LINES, Screen

_TITLE = re.compile(r"^\d+\. ")


@cache
def shown(*options: str, **env: str) -> Screen:
    code, screen = terminal.run(["demo", *options], env=env)
    assert code == 0, screen.text
    return screen


@cache
def piped() -> str:
    command = [sys.executable, "-m", "mpota", "demo"]
    return subprocess.run(command, capture_output=True, check=True, timeout=120).stdout.decode()


def chapters(text: str) -> list[list[str]]:
    """From a title to the one behind it; what comes after the story is the last one."""
    found: list[list[str]] = []
    for line in text.splitlines():
        if _TITLE.match(line) or line == "What was shown":
            found.append([])
        if found:
            found[-1].append(line)
    return found


def test_a_chapter_fits_a_screen_of_80_columns_and_24_lines() -> None:
    screen = shown()
    assert screen.wraps == 0
    assert max(map(len, screen.lines)) <= COLUMNS
    for chapter in chapters(screen.text):
        assert len(chapter) <= LINES, chapter
    assert len(screen.lines) <= 4 * LINES


def test_a_chapter_has_a_sentence_and_a_verdict() -> None:
    *story, _ = chapters(shown().text)
    assert len(story) == 9
    for title, sentence, *rest in story:
        assert re.match(r"   [A-Zm].*\.$", sentence), title
        assert len([line for line in rest if line.startswith("   ok: ")]) == 1, title


def test_a_closing_table_has_every_chapter_with_its_verdict() -> None:
    *story, end = chapters(shown().text)
    for chapter in story:
        (verdict,) = (line.strip()[4:] for line in chapter if line.startswith("   ok: "))
        (row,) = (line for line in end if line.strip().startswith(f"{chapter[0]}  "))
        assert verdict in row
    assert re.search(r"^All 15 boots started a complete, verified app\.$", "\n".join(end), re.M)


def test_the_three_commands_for_a_firmware_of_one_s_own_work(tmp_path: Path) -> None:
    (tmp_path / "firmware.bin").write_bytes(sample.build_firmware("esp32"))
    commands = [line.split("  #")[0].split("mpota ")[1] for line in piped().splitlines()[-3:]]
    assert [command.split()[0] for command in commands] == ["show", "resize", "check"]
    for command in commands:
        subprocess.run(
            [sys.executable, "-m", "mpota", *command.split()],
            cwd=tmp_path, check=True, capture_output=True, timeout=60,
        )  # fmt: skip


def test_with_a_firmware_of_one_s_own_the_commands_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my own.bin").write_bytes(sample.build_firmware("esp32c3"))
    code, screen = terminal.run(["demo", "my own.bin"], directory=tmp_path)
    assert code == 0, screen.text
    assert "Firmware: my own.bin, yours: ESP32-C3, 4MB of flash" in screen.text
    assert "mpota resize 'my own.bin' --layout ota" in screen.text
    assert screen.wraps == 0


def test_the_board_s_console_is_folded_unless_it_is_asked_for() -> None:
    assert "load:0x" not in shown().text
    unfolded = shown("--console").text
    assert "   | load:0x" in unfolded
    assert "   | main.py: healthy, confirmed" in unfolded


def test_a_verdict_has_a_colour_on_a_terminal_that_wants_colours() -> None:
    assert "\x1b[32m   ok:\x1b[0m" in shown().output
    assert "\x1b" not in shown(NO_COLOR="1").output
    assert shown(NO_COLOR="1").text == shown().text


def test_into_a_pipe_goes_plain_text() -> None:
    assert re.fullmatch(r"[ -~\n]*", piped())
    long = [line for line in piped().splitlines() if len(line) > COLUMNS]
    assert any("or more are missing" in line for line in long), "no line is broken in a pipe"


@pytest.mark.skipif(stock.find() is None, reason="`make firmware` has fetched no stock firmware")
def test_it_is_told_of_the_stock_firmware_where_that_is_at_hand() -> None:
    assert f"Firmware: {stock.NAME}, stock MicroPython" in " ".join(shown().lines)


def test_a_wrong_firmware_is_refused_before_the_story_begins(tmp_path: Path) -> None:
    (tmp_path / "no.bin").write_bytes(bytes(5000))
    done = subprocess.run(
        [sys.executable, "-m", "mpota", "demo", "no.bin"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, env=os.environ, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("mpota: no.bin")
