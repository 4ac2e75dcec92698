"""Updates over Bluetooth Low Energy: the desk's side, with bleak."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from mpota.errors import MpotaError, UsageError
from mpota.push.update import LostLinkError, Options, Pushed
from mpota.push.wire import Update, send_update
from mpota.text import shown

if TYPE_CHECKING:
    from bleak import BleakClient
    from bleak.backends.device import BLEDevice

SERVICE = "6d706f74-6100-4b1e-9c53-7a0f5d2e8b46"
CONTROL = "6d706f74-6101-4b1e-9c53-7a0f5d2e8b46"
DATA = "6d706f74-6102-4b1e-9c53-7a0f5d2e8b46"

_MORE = 0x80  # flag in a fragment's first byte: others follow; its low bits count fragments
_ATT_HEADER_SIZE = 3
_MIN_PACKET_SIZE = 20
_MAX_PACKET_SIZE = 512  # of any attribute: Core Specification, 3.F.3.2.9


@dataclass(frozen=True)
class Backend:
    """What bleak is to use in place of the computer's own Bluetooth: see virtual/radio.py."""

    client: Any = None
    scanner: Any = None


OWN_BLUETOOTH = Backend()


@dataclass(frozen=True)
class Found:
    """A board that advertises for updates. ``rssi`` in dBm."""

    name: str
    address: str
    rssi: int
    device: BLEDevice


async def scan(timeout_s: float, backend: Backend | None = None) -> list[Found]:
    """All boards in reach that take updates. Raises MpotaError if there is no Bluetooth here."""
    bleak = _bleak()
    backend = backend or OWN_BLUETOOTH
    try:
        seen = await bleak.BleakScanner.discover(
            timeout_s, return_adv=True, service_uuids=[SERVICE], backend=backend.scanner
        )
    except (bleak.exc.BleakError, OSError) as error:
        raise _no_bluetooth(error) from None
    return [
        Found(shown(data.local_name or device.name or ""), device.address, data.rssi, device)
        for device, data in seen.values()
    ]


async def find(target: str, timeout_s: float, backend: Backend | None = None) -> BLEDevice:
    """The board with that name or address. Raises MpotaError if it is not in reach."""
    bleak = _bleak()
    backend = backend or OWN_BLUETOOTH
    wanted = target.lower()
    names: set[str] = set()

    def is_wanted(device: Any, data: Any) -> bool:
        name = data.local_name or ""
        if SERVICE in data.service_uuids:
            names.add(shown(name or device.address))
        return wanted in (device.address.lower(), name.lower(), shown(name).lower())

    try:
        found: BLEDevice | None = await bleak.BleakScanner.find_device_by_filter(
            is_wanted, timeout_s, backend=backend.scanner
        )
    except (bleak.exc.BleakError, OSError) as error:
        raise _no_bluetooth(error) from None
    if found is None:
        seen = f"in reach: {', '.join(sorted(names))}" if names else "mpota ble scan shows boards"
        raise LostLinkError(f"no board '{target}' in {timeout_s:g} s", seen)
    return found


def _no_bluetooth(error: Exception) -> MpotaError:
    """Why there is no scan. Without an adapter, or BlueZ, bleak's error is a missing file."""
    if isinstance(error, OSError):
        return MpotaError(
            f"this computer has no Bluetooth that is on ({error.strerror or error})",
            "switch it on, or plug an adapter in; on Linux, bluetoothd has to run",
        )
    return MpotaError(f"cannot scan: {error}")


async def push(
    target: str,
    update: Update,
    options: Options,
    *,
    pair: bool = False,
    timeout_s: float = 10.0,
    backend: Backend | None = None,
) -> Pushed:
    """Send ``update`` to the board with that name or address. Raises MpotaError."""
    connected = partial(connect, target, pair=pair, timeout_s=timeout_s, backend=backend)
    return await send_update(connected, update, options)


@asynccontextmanager
async def connect(
    target: str, *, pair: bool = False, timeout_s: float = 10.0, backend: Backend | None = None
) -> AsyncIterator[BleLink]:
    """A link to the board with that name or address. Raises LostLinkError."""
    backend = backend or OWN_BLUETOOTH
    bleak = _bleak()
    device = await find(target, timeout_s, backend)
    try:
        async with bleak.BleakClient(
            device, pair=pair, timeout=timeout_s, backend=backend.client
        ) as client:
            link = BleLink(client)
            await link.start()
            yield link
    except (bleak.exc.BleakError, OSError, TimeoutError) as error:
        raise LostLinkError(f"{target}: {error or type(error).__name__}") from None


class BleLink:
    """See `mpota.push.wire.Link`."""

    def __init__(self, client: BleakClient) -> None:
        self.client = client
        self._messages: asyncio.Queue[bytes] = asyncio.Queue()
        self._parts: list[bytes] = []

    async def start(self) -> None:
        client = self.client
        control = client.services.get_characteristic(CONTROL)
        data = client.services.get_characteristic(DATA)
        if control is None or data is None:
            raise MpotaError("this device does not take updates: it lacks the service")
        self._control, self._data = control, data
        await client.start_notify(control, lambda _, fragment: self._take(bytes(fragment)))

    @property
    def packet_size(self) -> int:
        size = self._data.max_write_without_response_size
        return min(max(_MIN_PACKET_SIZE, size), _MAX_PACKET_SIZE)

    async def send(self, message: bytes) -> None:
        room = max(_MIN_PACKET_SIZE, self.client.mtu_size - _ATT_HEADER_SIZE) - 1
        pieces = [message[at : at + room] for at in range(0, len(message), room)]
        for number, piece in enumerate(pieces):
            head = number | (_MORE if number < len(pieces) - 1 else 0)
            await self.client.write_gatt_char(self._control, bytes((head,)) + piece, response=True)

    async def send_data(self, packet: bytes) -> None:
        await self.client.write_gatt_char(self._data, packet, response=False)

    async def receive(self, timeout_s: float) -> bytes | None:
        if timeout_s == 0:
            return None if self._messages.empty() else self._messages.get_nowait()
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            left = deadline - asyncio.get_running_loop().time()
            try:
                return await asyncio.wait_for(self._messages.get(), min(max(left, 0), 0.5))
            except asyncio.TimeoutError:
                if not self.client.is_connected:
                    raise LostLinkError("the connection broke") from None
                if left <= 0:
                    return None

    def _take(self, fragment: bytes) -> None:
        """Put a message together; one that lacks a fragment is dropped."""
        if not fragment:
            return
        number = fragment[0] & ~_MORE
        if number == 0:
            self._parts = []
        elif number != len(self._parts):
            self._parts = []
            return
        self._parts.append(fragment[1:])
        if not fragment[0] & _MORE:
            self._messages.put_nowait(b"".join(self._parts))
            self._parts = []


def _bleak() -> Any:
    try:
        import bleak
    except ImportError:
        raise UsageError("Bluetooth needs the Python package bleak", "pip install bleak") from None
    return bleak
