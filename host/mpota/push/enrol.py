"""Tells a board which server it belongs to, by what name, and the token that lets it in."""

from __future__ import annotations

from dataclasses import dataclass, field

from mpota.errors import MpotaError
from mpota.push.install import install
from mpota.push.repl import Session

PART = "ddi"
NAMESPACE, KEY = "ota", "ddi-place"  # in NVS: device/ota/ddi_more.py
MAX_SIZE = 512  # bytes that a board reads there


@dataclass(frozen=True)
class Enrolment:
    """What `ota.ddi.Client()` takes when it is given nothing."""

    url: str
    tenant: str
    id: str
    token: str = field(repr=False)

    def to_bytes(self) -> bytes:
        """As it is stored. Raises MpotaError if it is longer than a board reads."""
        data = "\0".join((self.url, self.tenant, self.id, self.token)).encode()
        if len(data) > MAX_SIZE:
            raise MpotaError(
                f"URL, tenant, id and token have {len(data)} bytes, a board reads {MAX_SIZE}"
            )
        return data


def enrol(session: Session, enrolment: Enrolment) -> bool:
    """Tell a board, and install the part of `ota` for it if that is missing; whether anything
    changed.

    Raises MpotaError for a board that cannot store it.
    """
    data = enrolment.to_bytes()
    has_part = session.evaluate("has_part", _LOOK, fits=_is_bool)
    is_changed = not has_part and install(session, parts=(PART,)).is_changed
    setup = f"{_SCRIPT}\ndata = {data!r}"
    if session.evaluate("is_there(data)", setup, fits=_is_bool):
        return is_changed
    if not session.evaluate("store(data) and is_there(data)", setup, fits=_is_bool):
        raise MpotaError(f"{session.port}: the board's NVS does not take it")
    return True


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


# It may be frozen into the firmware, or in a ROMFS.
_LOOK = f"""
try:
    import ota.{PART}
    has_part = True
except ImportError:
    has_part = False
"""
_SCRIPT = f"""
import ota.base
def is_there(data):
    return bytes(ota.base.recall({KEY!r}, {MAX_SIZE})) == data
def store(data):
    return ota.base.note({KEY!r}, data)
"""
