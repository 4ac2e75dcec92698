"""Whether an app is on its trial boot, asked at the REPL: a look by the ROM loader ends it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from mpota.errors import MpotaError
from mpota.formats.otadata import OtaRecord, OtaState, active_record
from mpota.push.repl import Session
from mpota.storage.ports import LOADER_END, REPL_END, find_port, is_pty

# A board that is silent for longer is deaf to Ctrl-C, or runs no MicroPython: only its loader can
# tell. A board that is just starting needs this time: a reset would end its trial boot.
_PATIENCE_S = 8.0

_SCRIPT = """
from esp32 import Partition
label = Partition(Partition.RUNNING).info()[4]
records = []
for part in Partition.find(Partition.TYPE_DATA, subtype=0)[:1]:
    for block in (0, 1):
        record = bytearray(32)
        part.readblocks(block, record, 0)
        records.append(record.hex())
"""


class Trial(NamedTuple):
    """``label``: of the app that is on its trial boot; ``console``: the port of the REPL."""

    label: str
    console: str


_FREE_HEAP = "import gc\ngc.collect()\n"


def read_heap_size(port: str | os.PathLike[str]) -> int | None:
    """Bytes of heap that are free on the board when boot.py starts; None if its REPL tells nothing.

    Its program is stopped, and started again by a soft reset.
    """
    console = console_of(find_port(port))
    if console is None:
        return None
    try:
        with Session(console, patience_s=_PATIENCE_S) as session:
            session.soft_reset()
            size = session.evaluate(
                "gc.mem_free()", _FREE_HEAP, fits=lambda value: isinstance(value, int)
            )
    except MpotaError:
        return None
    return int(size)


def find_trial(port: str | os.PathLike[str]) -> Trial | None:
    """The trial boot that the app which runs is in; None if there is none, or if the board does
    not answer at its REPL.

    It needs no package on the board. The program is stopped, and started again by a soft reset,
    which is no boot to the bootloader.
    """
    console = console_of(find_port(port))
    if console is None:
        return None
    try:
        with Session(console, patience_s=_PATIENCE_S) as session:
            label, *words = session.evaluate("[label] + records", _SCRIPT, fits=_are_texts)
        records = [OtaRecord.from_bytes(bytes.fromhex(word)) for word in words]
    except (MpotaError, ValueError):
        return None
    active = active_record(records)
    if active is None or records[active].ota_state != OtaState.PENDING_VERIFY:
        return None
    return Trial(label, console)


def console_of(port: str) -> str | None:
    """The port of a board's REPL; a virtual board has one beside that of its loader."""
    if not is_pty(port):
        return port
    path = Path(port)
    console = path.with_suffix(REPL_END)
    return str(console) if path.suffix == LOADER_END and console.exists() else None


def _are_texts(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) in (1, 3)
        and all(isinstance(text, str) for text in value)
    )
