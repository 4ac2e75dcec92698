"""Finding a MicroPython interpreter, and fetching one with apt: here with an apt of our own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mpota
import pytest
from mpota.errors import MpotaError
from mpota.virtual import micropython
from mpota.virtual.micropython import Interpreter

GOOD = "#!/bin/sh\necho 1 25 0 4\n"

# An apt and a dpkg that know of one package, for i386, in the suite trixie.
APT_GET = """#!/bin/sh
echo "apt-get $*" >> "$LOG"
case "$*" in
  *"=i386 "*install*)
    for o in "$@"; do
      case "$o" in Dir::Cache=*) touch "${o#*=}/archives/micropython.deb" ;; esac
    done
    ;;
  *install*) echo "E: Unable to locate package micropython" >&2; exit 100 ;;
esac
"""
DPKG_DEB = """#!/bin/sh
mkdir -p "$3/usr/bin" "$3/usr/lib/i386-linux-gnu"
touch "$3/usr/bin/micropython"
printf '#!/bin/sh\\necho 1 25 0 4\\n' > "$3/usr/lib/i386-linux-gnu/ld-linux.so.2"
chmod +x "$3/usr/lib/i386-linux-gnu/ld-linux.so.2"
"""
DPKG = "#!/bin/sh\necho amd64\n"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of which only the shell is known; programs are added by `program`."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("sh", "mkdir", "touch", "chmod"):
        (tools / tool).symlink_to(f"/bin/{tool}")
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.delenv("MICROPYTHON", raising=False)
    return tmp_path


def program(machine, name, text=GOOD):
    path = machine / "bin" / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def with_apt(machine):
    for name, text in (("apt-get", APT_GET), ("dpkg-deb", DPKG_DEB), ("dpkg", DPKG)):
        program(machine, name, text)


def find():
    return micropython.find.__wrapped__()


def test_the_variable_comes_first(machine, monkeypatch):
    program(machine, "micropython", "#!/bin/sh\necho 1 26 0 8\n")
    mine = program(machine, "mine")
    monkeypatch.setenv("MICROPYTHON", str(mine))
    assert find() == Interpreter((str(mine),), (1, 25, 0), 4)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("#!/bin/sh\necho 1 22 1 8\n", r"is MicroPython 1\.22\.1, older than 1\.23\.0"),
        ("#!/bin/sh\necho hello\n", "is not a MicroPython"),
        ("#!/bin/sh\nexit 1\n", "is not a MicroPython"),
        (None, "does not run"),
    ],
    ids=["old", "something else", "failing", "missing"],
)
def test_a_variable_that_names_no_good_interpreter_is_an_error(
    machine, monkeypatch, text, complaint
):
    program(machine, "micropython")
    path = machine / "bin" / "mine"
    if text is not None:
        program(machine, "mine", text)
    monkeypatch.setenv("MICROPYTHON", str(path))
    with pytest.raises(MpotaError, match=complaint) as caught:
        find()
    assert str(path) in str(caught.value)


def test_then_comes_the_path(machine):
    on_path = program(machine, "micropython")
    assert find().command == (str(on_path),)


def test_without_any_a_message_says_how_to_get_one(machine):
    with pytest.raises(MpotaError, match=r"needs MicroPython 1\.23\.0 .*no apt") as caught:
        find()
    assert "brew install micropython" in caught.value.hint


def test_an_old_one_on_the_path_is_named_when_there_is_no_better(machine):
    program(machine, "micropython", "#!/bin/sh\necho 1 22 0 8\n")
    with pytest.raises(MpotaError, match=r"1\.22\.0, older than 1\.23\.0"):
        find()


def debian_12(monkeypatch):
    """Let the machine be a Debian 12 with the usual sources, whatever it is."""
    files = {
        "/etc/os-release": 'ID=debian\nVERSION_CODENAME="bookworm"\n',
        "/etc/apt/sources.list": "deb http://mirror.invalid/debian bookworm main\n",
    }
    monkeypatch.setattr(micropython, "_read", lambda path: files.get(str(path), ""))


def test_apt_fetches_one_once_and_the_cache_keeps_it(machine, monkeypatch):
    with_apt(machine)
    debian_12(monkeypatch)
    found = find()
    root = machine / "cache/mpota/micropython/i386"
    assert found.command[0] == str(root / "usr/lib/i386-linux-gnu/ld-linux.so.2")
    assert found.command[-1] == str(root / "usr/bin/micropython")
    log = (machine / "log").read_text()
    assert find() == found
    assert (machine / "log").read_text() == log  # no network is needed any more
    assert sorted(path.name for path in root.parent.iterdir()) == ["i386", "lock"]


def test_another_is_of_another_version_and_fetched_once(machine, monkeypatch):
    with_apt(machine)
    debian_12(monkeypatch)
    monkeypatch.setattr(micropython, "find", lambda: Interpreter(("mine",), (1, 26, 0), 4))
    found = micropython.another()
    assert found.version == (1, 25, 0)
    assert found.command[-1].startswith(str(machine / "cache/mpota/micropython-other/i386"))
    log = (machine / "log").read_text()
    assert micropython.another() == found
    assert (machine / "log").read_text() == log


def test_another_of_the_same_version_is_none(machine, monkeypatch):
    with_apt(machine)
    debian_12(monkeypatch)
    monkeypatch.setattr(micropython, "find", lambda: Interpreter(("mine",), (1, 25, 0), 4))
    with pytest.raises(MpotaError, match=r"sid \(i386\): is MicroPython 1\.25\.0 too"):
        micropython.another()


def test_a_failing_apt_leaves_nothing_and_says_why(machine, monkeypatch):
    with_apt(machine)
    program(machine, "apt-get", "#!/bin/sh\necho 'E: no route to the mirror' >&2\nexit 100\n")
    debian_12(monkeypatch)
    with pytest.raises(MpotaError, match="no route to the mirror"):
        find()
    assert [path.name for path in (machine / "cache/mpota/micropython").iterdir()] == ["lock"]


def test_several_processes_fetch_once(machine):
    with_apt(machine)
    code = (
        "from mpota.virtual import micropython as m\n"
        "files = {'/etc/os-release': 'ID=debian\\nVERSION_CODENAME=bookworm\\n',"
        " '/etc/apt/sources.list': 'deb http://mirror.invalid/debian bookworm main\\n'}\n"
        "m._read = lambda path: files.get(str(path), '')\n"
        "print(m.find().command[-1])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(mpota.__file__).parents[1])}
    children = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
        for _ in range(4)
    ]
    answers = {child.communicate()[0] for child in children}
    assert len(answers) == 1
    assert (machine / "log").read_text().count("install --download-only") == 1


def test_one_line_sources_are_derived_from_the_machines_own():
    text = """\
# deb http://old.invalid/debian bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/x.gpg] https://mirror.invalid/debian bookworm main
deb-src https://mirror.invalid/debian bookworm main
deb https://mirror.invalid/debian bookworm-updates main
deb https://mirror.invalid/debian-security bookworm-security main
deb http://second.invalid/debian  stable  main contrib
"""
    assert micropython._exchange_one_line(text, ("bookworm", "stable"), "trixie") == (
        "deb [ signed-by=/usr/share/keyrings/x.gpg] https://mirror.invalid/debian trixie main\n"
        "deb http://second.invalid/debian trixie main contrib\n"
    )


def test_deb822_sources_are_derived_from_the_machines_own():
    text = """\
Types: deb deb-src
# http://snapshot.invalid/archive
URIs: http://mirror.invalid/debian
Suites: bookworm bookworm-updates
Components: main
Architectures: amd64
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Types: deb
URIs: http://mirror.invalid/debian-security
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://off.invalid/debian
Suites: bookworm
Components: main
"""
    assert (
        micropython._exchange_deb822(text, ("bookworm", "stable"), "trixie")
        == """\
Types: deb
URIs: http://mirror.invalid/debian
Suites: trixie
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
"""
    )


def test_a_heap_holds_what_it_holds_on_a_board():
    narrow = Interpreter(("mp",), (1, 25, 0), 4)
    wide = Interpreter(("mp",), (1, 25, 0), 8)
    assert narrow.with_heap(120 * 1024) == ["mp", "-X", "heapsize=122880"]
    assert wide.with_heap(120 * 1024) == ["mp", "-X", "heapsize=245760"]
