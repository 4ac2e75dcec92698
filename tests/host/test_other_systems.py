"""Windows and macOS, as far as Linux can show: no module that only POSIX has, any encoding of the
console, and paths with blanks and umlauts. Locales that know no umlaut.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mpota.cli import _COMMANDS

from tests.support.firmware_files import small_app, small_firmware

# What Windows' Python lacks; select.poll and signal.pause macOS and others may lack as well.
POSIX_MODULES = (
    "fcntl",
    "termios",
    "pty",
    "tty",
    "resource",
    "pwd",
    "grp",
    "readline",
    "syslog",
    "curses",
)
POSIX_NAMES = {
    "os": ("geteuid", "getuid", "getgid", "fork", "openpty", "ttyname", "killpg", "setsid"),
    "signal": ("SIGKILL", "SIGHUP", "SIGALRM", "pause", "setitimer"),
    "select": ("poll",),
}
SEPARATOR = "=== next ==="
PROGRAM = f"""
import importlib, json, os, sys, warnings

# A file read or written as text by the locale's encoding.
warnings.filterwarnings("error", category=EncodingWarning, module="mpota")

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in {POSIX_MODULES!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

for name in {POSIX_MODULES!r}:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Missing())
for name, gone in {POSIX_NAMES!r}.items():
    module = importlib.import_module(name)
    for attribute in gone:
        delattr(module, attribute)

from mpota.cli import main

for args, expected in json.loads(os.fsencode(sys.argv[1]).decode()):
    try:
        main([os.fsdecode(arg.encode()) for arg in args])
    except SystemExit as exit:
        code = exit.code or 0
    assert code == expected, (args, code)
    print({SEPARATOR!r}, flush=True)
"""


def run_without_posix(
    commands: list[tuple[list[object], int]], directory: Path, **environment: str
) -> list[str]:
    """What each command prints, in a Python that has what all systems have."""
    texts = json.dumps([([str(arg) for arg in args], code) for args, code in commands])
    result = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", "-c", PROGRAM, texts],
        cwd=directory,
        env={**os.environ, **environment},
        capture_output=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr.decode(errors="replace")
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    # What `cat` writes is the file's bytes, in whatever encoding.
    return result.stdout.decode(encoding, "replace").split(f"{SEPARATOR}\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with a firmware, an app and sources, whose names are not all ASCII."""
    folder = tmp_path / "ein Ordner für Dateien"
    (folder / "quelle" / "größen").mkdir(parents=True)
    (folder / "fírmware 1.bin").write_bytes(small_firmware())
    (folder / "app ü.bin").write_bytes(small_app())
    (folder / "quelle" / "main.py").write_text("print('ü')\n", encoding="utf-8")
    (folder / "quelle" / "größen" / "maß.py").write_text("x = 1\n", encoding="utf-8")
    return folder


# Not `sample`: it writes its image by esptool, whose serial ports are the system's own.
FIRMWARE, APP = "fírmware 1.bin", "app ü.bin"
FILE_COMMANDS: list[tuple[list[object], int]] = [
    (["show", FIRMWARE], 0),
    (["show", "ist nicht da ü.bin"], 2),
    (["check", FIRMWARE], 0),
    (["check", APP, "--against", FIRMWARE, "--as-app"], 0),
    (["resize", FIRMWARE, "-f", "8M", "-o", "größer.bin"], 0),
    (["extract", FIRMWARE, "-o", "äpp.bin"], 0),
    (["write", FIRMWARE, f"factory={APP}", "-o", "neu ü.bin"], 0),
    (["table", FIRMWARE, "-o", "tabellé.csv"], 0),
    (["table", "tabellé.csv"], 0),
    (["fs", "put", FIRMWARE, "quelle/", "/"], 0),
    (["fs", "ls", FIRMWARE], 0),
    (["fs", "ls", FIRMWARE, "/größen/*"], 0),
    (["fs", "ls", FIRMWARE, "/fehlt ü"], 1),
    (["fs", "tree", FIRMWARE], 0),
    (["fs", "mkdir", FIRMWARE, "/neü"], 0),
    (["fs", "mv", FIRMWARE, "/größen/maß.py", "/neü"], 0),
    (["fs", "cat", FIRMWARE, "/main.py"], 0),
    (["fs", "get", FIRMWARE, "/neü", "zurück/"], 0),
    (["fs", "rm", FIRMWARE, "-r", "/neü"], 0),
    (["fs", "df", FIRMWARE], 0),
    (["fs", "check", FIRMWARE], 0),
    (["fs", "grow", FIRMWARE], 0),
    (["fs", "mkfs", FIRMWARE, "--force"], 0),
    (["fs", "build", "quelle", "--for", FIRMWARE, "-o", "bild ü.img"], 0),
    (["keygen", "schlüssel.pem"], 0),
    (
        [
            "bundle",
            APP,
            "--name",
            "lamp",
            "--version",
            "1.0.0",
            "--files",
            "quelle",
            "-o",
            "b ü.tar",
        ],
        0,
    ),
    (["sign", "b ü.tar", "--key", "schlüssel.pem", "-o", "signiert ü.tar"], 0),
    (["verify", "signiert ü.tar", "--key", "schlüssel.pem"], 0),
    (["ls", "signiert ü.tar"], 0),
    (["cat", "signiert ü.tar", "main.py"], 0),
    (["delta", APP, APP, "-o", "ünterschied.delta"], 0),
]


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "cp437", "ascii"])
def test_file_commands_need_nothing_of_posix_and_print_in_any_encoding(
    folder: Path, encoding: str
) -> None:
    printed = run_without_posix(FILE_COMMANDS, folder, PYTHONIOENCODING=encoding)
    shown = printed[0]
    name = FIRMWARE.encode(encoding, "backslashreplace").decode(encoding)
    assert f"file:       {name}" in shown
    listing = printed[[args for args, _ in FILE_COMMANDS].index(["fs", "ls", FIRMWARE])]
    assert "/größen/".encode(encoding, "backslashreplace").decode(encoding) in listing
    assert (folder / "zurück" / "neü" / "maß.py").read_text(encoding="utf-8") == "x = 1\n"


def test_every_command_can_be_asked_for_help_without_posix(folder: Path) -> None:
    commands: list[tuple[list[object], int]] = [([name, "--help"], 0) for name in _COMMANDS]
    printed = run_without_posix([(["--help"], 0), *commands], folder, PYTHONIOENCODING="cp1252")
    assert all("Usage" in text for text in printed[: len(commands) + 1])


C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    ("environment", "umlaut"),
    [({"LC_ALL": "C"}, "ü"), ({**C_LOCALE}, "\\xfc")],
    ids=["C", "C without UTF-8"],
)
def test_in_locale_c_names_are_names_and_not_surrogates(
    folder: Path, environment: dict[str, str], umlaut: str
) -> None:
    name = f"ü{'x' * 20}.py"
    (folder / "quelle" / name).write_text("y = 2\n", encoding="utf-8")
    commands: list[tuple[list[object], int]] = [
        (["show", APP], 0),
        (["fs", "put", FIRMWARE, "quelle/", "/"], 0),
        (["fs", "ls", FIRMWARE], 0),
        (["fs", "cat", FIRMWARE, f"/{name}"], 0),
        (["fs", "get", FIRMWARE, f"/{name}", "."], 0),
    ]
    unset = {key: "" for key in ("LANG", "LC_CTYPE", "PYTHONIOENCODING") if key in os.environ}
    printed = run_without_posix(commands, folder, **unset, **environment)
    assert f"app {umlaut}.bin" in printed[0]
    assert f"/{umlaut}{'x' * 20}.py" in printed[2]
    assert not any("\\xc3" in text or "udc" in text for text in printed)
    assert (folder / name).read_text(encoding="utf-8") == "y = 2\n"
    # In UTF-8, as boards have it: another locale finds it under the same name.
    again: list[tuple[list[object], int]] = [(["fs", "cat", FIRMWARE, f"/{name}"], 0)]
    assert run_without_posix(again, folder, PYTHONIOENCODING="utf-8")[0] == "y = 2\n"
