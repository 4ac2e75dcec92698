"""What is made once in a test run, whichever of its processes needs it first.

All temporary files of a run are in a directory of its own, which is TMPDIR for its processes too.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

RUN_DIRECTORY = "MPOTA_TEST_RUN"  # the environment variable that names it
_MEMORY = Path("/dev/shm")


def begin_run() -> Path:
    """Make the run's directory, for this process and all that it starts."""
    directory = Path(tempfile.mkdtemp(prefix="mpota-tests-"))
    os.environ[RUN_DIRECTORY] = str(directory)
    (directory / "tmp").mkdir()
    (directory / "once").mkdir()
    if os.access(_MEMORY, os.W_OK):
        flash_directory().mkdir()
    os.environ["TMPDIR"] = str(directory / "tmp")
    tempfile.tempdir = None  # so that it is looked up again
    return directory


def directory(name: str, fill: Callable[[Path], object]) -> Path:
    """The directory ``name`` of this run; ``fill`` has filled it."""
    root = Path(os.environ[RUN_DIRECTORY]) / "once"
    target = root / name
    with open(root / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            scratch = root / f"{name}.new"
            shutil.rmtree(scratch, ignore_errors=True)  # of a test that was broken off
            scratch.mkdir()
            fill(scratch)
            scratch.rename(target)
    return target


def flash_directory() -> Path:
    """Where virtual flash is, if the system has memory for it; goes with `end_run`."""
    return _MEMORY / Path(os.environ[RUN_DIRECTORY]).name


def left_behind(run: Path) -> list[Path]:
    """Temporary files of this run that should have gone."""
    own = [path for path in (run / "tmp").glob("*") if not path.name.startswith("pytest-of-")]
    return sorted([*own, *flash_directory().glob("*")])


def end_run(run: Path, *, keep: bool) -> None:
    """Remove the run's directories; with ``keep`` not what tests have left to look at."""
    shutil.rmtree(flash_directory(), ignore_errors=True)
    if not keep:
        shutil.rmtree(run, ignore_errors=True)
