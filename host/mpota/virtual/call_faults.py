"""Calls into ESP-IDF that fail on a virtual board, as they would with worn flash or a full NVS."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mpota.formats.partition_table import Partition
from mpota.virtual.request import Request

# The calls that can fail, by the request that stands for each.
_CALLS = {
    Request.ERASE: "erase",
    Request.WRITE: "write",
    Request.SET_BOOT: "set_boot",
    Request.MARK_VALID: "mark_valid",
    Request.NVS_OPEN: "nvs_open",
    Request.NVS_SET: "nvs_set",
    Request.NVS_GET: "nvs_get",
    Request.NVS_ERASE: "nvs_erase",
    Request.NVS_COMMIT: "nvs_commit",
}
_AT_OFFSET = ("erase", "write", "set_boot")
_WITH_KEY = ("nvs_set", "nvs_get", "nvs_erase")


@dataclass
class CallFault:
    """``call`` answers the ``esp_err_t`` ``error`` and does nothing.

    ``call`` is ``read``, ``erase`` or ``write`` (of the flash, in the partition ``where``),
    ``set_boot`` (to the partition ``where``), ``mark_valid``, ``nvs_open`` (of the namespace
    ``where``), ``nvs_set``, ``nvs_get`` or ``nvs_erase`` (of the key ``where``), or ``nvs_commit``.
    Without ``where`` each such call fails. ``times`` is how many calls may still fail, None: all;
    each failed call counts it down. Reads are counted by the stand-ins, anew in each boot.
    """

    call: str
    error: int
    where: str | None = None
    times: int | None = None

    def __post_init__(self) -> None:
        if self.call != "read" and self.call not in _CALLS.values():
            raise ValueError(f"a board has no call {self.call!r} that could fail")


def find_error(
    faults: Iterable[CallFault],
    request: Request,
    argument: int,
    payload: bytes,
    partitions: Sequence[Partition],
) -> int:
    """The ``esp_err_t`` that ``request`` fails with, 0 if it does not; counts it."""
    call = _CALLS.get(request)
    if call is None:
        return 0
    for fault in faults:
        if fault.call != call or fault.times == 0:
            continue
        if fault.where not in (None, _target(call, argument, payload, partitions)):
            continue
        if fault.times is not None:
            fault.times -= 1
        return fault.error
    return 0


def _target(
    call: str, argument: int, payload: bytes, partitions: Sequence[Partition]
) -> str | None:
    """The label, namespace or key that a request is about."""
    if call in _AT_OFFSET:
        return next((p.label for p in partitions if p.offset <= argument < p.end), None)
    if call in _WITH_KEY:
        return payload.split(b"\0")[1].decode()
    return payload.decode() if call == "nvs_open" else None
