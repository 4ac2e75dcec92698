"""A radio for virtual boards: Bluetooth Low Energy between two controllers of Google's bumble.

The board's ``bluetooth`` module (``standin/bluetooth.py``) drives a peripheral here, through a
socket; the desk's side is a backend for bleak. Between them are real hosts and controllers: GAP,
ATT, L2CAP, HCI. What a radio does to packets that its two ends do not is what this module adds:
packets that the board's buffers have no room for, repeated ones, and links that break.

Needs ``bumble`` and ``bleak``: the extra ``radio``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import struct
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from bleak.backends.characteristic import BleakGATTCharacteristic
from bleak.backends.client import BaseBleakClient, NotifyCallback
from bleak.backends.descriptor import BleakGATTDescriptor
from bleak.backends.device import BLEDevice
from bleak.backends.scanner import AdvertisementData, BaseBleakScanner
from bleak.backends.service import BleakGATTService, BleakGATTServiceCollection
from bleak.exc import BleakDeviceNotFoundError, BleakError
from bumble import core, hci
from bumble.att import ATT_Error, Attribute
from bumble.controller import Controller
from bumble.device import Advertisement, Connection, Device, Peer
from bumble.gatt import Characteristic, CharacteristicValue, Service
from bumble.host import Host
from bumble.link import LocalLink
from bumble.pairing import PairingConfig, PairingDelegate
from bumble.transport.common import AsyncPipeSink

BOARD_ADDRESS = "24:0A:C4:C0:FF:F0"
_DESK_ADDRESS = "F0:F1:F2:F3:F4:F5"
_STRANGER_ADDRESS = "F0:F1:F2:F3:00:%02X"

# A link layer PDU with data length extension, without the MIC: Core Specification, 6.B.2.4.
_PDU_SIZE = 251
# What NimBLE holds for its host before it drops: CONFIG_BT_NIMBLE_TRANSPORT_ACL_FROM_LL_COUNT.
_BUFFER_COUNT = 24
_ENCRYPTED = 0x1000  # flags of a characteristic: extmod/modbluetooth.h
_AUTHENTICATED = 0x2000
_EVENT_HEADER = struct.Struct("<HH")  # of a write: connection and attribute
_ATT_HEADER_SIZE = 3  # opcode and handle
_L2CAP_HEADER_SIZE = 4
_LINK_HEADER_SIZE = 10  # preamble, access address, header, CRC: Core Specification, 6.B.2.1
_HOLD_S = 0.02
_INTERVAL_MS = 20

_T = TypeVar("_T")


@dataclass
class Noise:
    """What happens to packets on their way to the board's app; the shares are of 1.

    ``loss``: of the writes without response that the board's buffers drop. ``repeat``: of those
    that come twice. ``delay``: of those that a write with response overtakes: that is all the
    order that ATT leaves open, as each characteristic may have a queue of its own.
    ``deaf``: of the notifications that the desk does not get.
    """

    loss: float = 0.0
    repeat: float = 0.0
    delay: float = 0.0
    deaf: float = 0.0
    seed: int = 1


@dataclass
class Traffic:
    """What went over the air since the radio was made, both ways, in bytes.

    ``values``: of attributes; ``att``: with the headers of ATT, and its responses; ``l2cap``: with
    those of L2CAP; ``link``: with those of the link layer (1M PHY) that its PDUs with content have.
    """

    values: int = 0
    att: int = 0
    l2cap: int = 0
    link: int = 0
    lost: int = 0  # writes that were dropped
    overflows: int = 0  # of these, those that found no buffer

    def count(self, value_size: int, header_size: int = _ATT_HEADER_SIZE) -> None:
        att_size = value_size + header_size
        l2cap_size = att_size + _L2CAP_HEADER_SIZE
        self.values += value_size
        self.att += att_size
        self.l2cap += l2cap_size
        self.link += l2cap_size + -(-l2cap_size // _PDU_SIZE) * _LINK_HEADER_SIZE


class Radio:
    """A radio that one virtual board and one desk share; a context manager.

    ``mtu``: what the desk asks for. ``passkey``: what somebody at the desk types when the board
    shows its own; None: what it shows, which is in ``shown``. ``client`` and ``scanner`` are
    backends for BleakClient and BleakScanner; `stranger` gives those of other devices nearby.
    """

    def __init__(self, noise: Noise | None = None, mtu: int = 247, passkey: int | None = 0) -> None:
        self.noise = noise or Noise()
        self.mtu = mtu
        self.passkey = passkey
        self.shown: list[int] = []
        self.traffic = Traffic()
        self.to_board = 0  # bytes of values that have arrived there since `restart`
        self.break_at: int | None = None
        self.port = 0
        self._random = random.Random(self.noise.seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._board: _Peripheral | None = None
        self._strangers = 0

    def __enter__(self) -> Radio:
        self._thread.start()
        self._run(self._start())
        self.client, self.scanner = self._backend(self.desk)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def scan_response(self) -> bytes:
        return self._board.scan_response if self._board else b""

    @property
    def connections(self) -> int:
        """How many the board has."""
        return len(self._board.connections) if self._board else 0

    def stranger(self) -> tuple[Any, Any]:
        """A client and a scanner of one more device."""
        self._strangers += 1
        address = _STRANGER_ADDRESS % self._strangers
        return self._backend(self._run(self._switch_on(f"stranger {self._strangers}", address)))

    def _backend(self, device: Device) -> tuple[Any, Any]:
        attributes = {"radio": self, "device": device}
        return type("BumbleClient", (_Client,), attributes), type(
            "BumbleScanner", (_Scanner,), attributes
        )

    @property
    def taken(self) -> int:
        """Bytes that have arrived at the board: all that were counted."""
        return self.to_board

    def restart(self, break_at: int | None = None) -> None:
        """Count ``to_board`` from 0; the link breaks once, when it comes to ``break_at``."""
        self.to_board = 0
        self.break_at = break_at

    def count_to_board(self, size: int) -> bool:
        """So many bytes more arrive; whether that breaks the link."""
        self.to_board += size
        is_broken = self.break_at is not None and self.to_board >= self.break_at
        if is_broken:
            self.break_at = None
        return is_broken

    def break_link(self) -> None:
        """The two are out of reach of each other, for a moment."""
        self._run(self._break_link())

    async def call(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run ``work`` in the radio's thread, for a coroutine of another loop."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self) -> None:
        self._link = LocalLink()  # type: ignore[no-untyped-call]  # bumble has no types
        self.desk = await self._switch_on("desk", _DESK_ADDRESS)
        self._server = await asyncio.start_server(self._serve_board, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        self._server.close()
        if self._board is not None:
            await self._board.power_off()
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _switch_on(self, name: str, address: str) -> Device:
        """One of those that connect to the board."""
        device = self._device(name, address)
        device.pairing_config_factory = lambda connection: PairingConfig(
            mitm=True, bonding=False, delegate=_Typing(self)
        )
        await device.power_on()
        return device

    async def _break_link(self) -> None:
        if self._board is not None:
            await self._board.disconnect_all()

    def _device(self, name: str, address: str) -> Device:
        controller = Controller(name, link=self._link, public_address=address)
        controller.le_acl_data_packet_length = _PDU_SIZE
        host = Host(controller, AsyncPipeSink(controller))
        device = Device(name=name, address=hci.Address(address), host=host)
        device.random_address = hci.Address(address)
        return device

    async def _serve_board(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """One boot of the board, from the radio's switching on to its end."""
        board = _Peripheral(self, self._device("board", BOARD_ADDRESS), writer)
        self._board = board
        try:
            await board.serve(reader)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the board has been reset, or the radio is no more
        finally:
            self._board = None
            await board.power_off()
            self._link.remove_controller(board.controller)
            writer.close()

    def chance(self, share: float) -> bool:
        return share > 0 and self._random.random() < share


class _Peripheral:
    """The board's host and controller."""

    def __init__(self, radio: Radio, device: Device, writer: asyncio.StreamWriter) -> None:
        self._radio = radio
        self._device = device
        self._writer = writer
        self._characteristics: dict[int, Characteristic[bytes]] = {}
        self.connections: dict[int, Connection] = {}
        self.scan_response = b""
        self._waiting = 0  # writes that the board has not taken yet
        self._held: list[bytes] = []
        self._passkeys: dict[int, asyncio.Future[int]] = {}
        self._breaking: asyncio.Future[None] | None = None
        assert isinstance(device.host, Host)
        link = next(c for c in radio._link.controllers if c.name == "board" and c.host)
        self.controller = link

    async def serve(self, reader: asyncio.StreamReader) -> None:
        self._device.on("connection", self._on_connection)
        await self._device.power_on()
        while True:
            (size,) = struct.unpack("<H", await reader.readexactly(2))
            frame = await reader.readexactly(size)
            await self._perform(chr(frame[0]), frame[1:])

    async def _perform(self, kind: str, payload: bytes) -> None:
        """One request of ``standin/bluetooth.py``."""
        match kind:
            case "M":
                (self._device.gatt_server.max_mtu,) = struct.unpack("<H", payload)
            case "R":
                for uuid, characteristics in json.loads(payload):
                    self._device.add_service(self._service(uuid, characteristics))
            case "V" if payload:
                data = payload[1 : 1 + payload[0]]
                self.scan_response = payload[1 + payload[0] :]
                await self._device.start_advertising(
                    advertising_data=data,
                    advertising_interval_min=_INTERVAL_MS,
                    advertising_interval_max=_INTERVAL_MS,
                )
            case "V":
                await self._device.stop_advertising()
            case "N":
                number, handle = struct.unpack_from("<HH", payload)
                await self._notify(number, self._characteristics[handle], payload[4:])
            case "T":
                (count,) = struct.unpack("<H", payload)
                self._waiting -= count
            case "D":
                await self.disconnect(struct.unpack("<H", payload)[0])
            case "S":
                self._device.pairing_config_factory = lambda connection: PairingConfig(
                    mitm=bool(payload[0]),
                    bonding=False,
                    delegate=_Showing(self, connection.handle),
                )
            case "K":
                number, passkey = struct.unpack("<HI", payload)
                if number in self._passkeys:
                    self._radio.shown.append(passkey)
                    self._passkeys.pop(number).set_result(passkey)

    def _service(self, uuid: str, described: list[tuple[str, int, int]]) -> Service:
        return Service(core.UUID(uuid), [self._characteristic(*row) for row in described])

    def _characteristic(self, uuid: str, flags: int, handle: int) -> Characteristic[bytes]:
        permissions = Attribute.Permissions.WRITEABLE | Attribute.Permissions.READABLE
        if flags & _ENCRYPTED:
            permissions |= Attribute.Permissions.WRITE_REQUIRES_ENCRYPTION
        if flags & _AUTHENTICATED:
            permissions |= Attribute.Permissions.WRITE_REQUIRES_AUTHENTICATION
        is_lossy = bool(flags & Characteristic.Properties.WRITE_WITHOUT_RESPONSE)

        def write(connection: Any, value: bytes) -> None:
            self._radio.traffic.count(len(value))
            event = _EVENT_HEADER.pack(connection.handle, handle) + value
            if is_lossy:
                self._take_command(event)
            else:
                self._radio.traffic.count(0, header_size=1)  # the response
                self._take_request(event)

        made: Characteristic[bytes] = Characteristic(
            core.UUID(uuid),
            Characteristic.Properties(flags & 0xFF),
            permissions,
            CharacteristicValue(write=write),
        )
        self._characteristics[handle] = made
        return made

    # --- to the board

    def _take_request(self, event: bytes) -> None:
        self._deliver(event)
        self._release()

    def _take_command(self, event: bytes) -> None:
        radio = self._radio
        if self._held or radio.chance(radio.noise.delay):
            if not self._held:
                asyncio.get_running_loop().call_later(_HOLD_S, self._release)
            self._held.append(event)
            return
        self._take_event(event)

    def _release(self) -> None:
        held, self._held = self._held, []
        for event in held:
            self._take_event(event)

    def _take_event(self, event: bytes) -> None:
        radio = self._radio
        buffers = -(-(len(event) + 3) // _PDU_SIZE)  # of this packet
        is_full = self._waiting + buffers > _BUFFER_COUNT
        if is_full or radio.chance(radio.noise.loss):
            radio.traffic.lost += 1
            radio.traffic.overflows += is_full
            return
        for _ in range(2 if radio.chance(radio.noise.repeat) else 1):
            self._deliver(event)

    def _deliver(self, event: bytes) -> None:
        self._waiting += 1
        self._send("W", event)
        if self._radio.count_to_board(len(event) - _EVENT_HEADER.size):
            self._breaking = asyncio.ensure_future(self.disconnect_all())

    def _send(self, kind: str, payload: bytes) -> None:
        self._writer.write(struct.pack("<HB", 1 + len(payload), ord(kind)) + payload)

    def _on_connection(self, connection: Connection) -> None:
        self.connections[connection.handle] = connection
        peer = struct.pack("<HB", connection.handle, 0) + bytes(connection.peer_address)
        self._send("C", peer)

        def on_mtu() -> None:
            self._send("M", struct.pack("<HH", connection.handle, connection.att_mtu))

        def on_end(reason: int) -> None:
            del self.connections[connection.handle]
            self._held = [event for event in self._held if event[:2] != peer[:2]]
            self._send("D", peer)

        def on_encryption() -> None:
            if connection.is_encrypted:
                state = struct.pack("<HB", connection.handle, connection.authenticated)
                self._send("E", state)

        connection.on("connection_att_mtu_update", on_mtu)
        connection.on("disconnection", on_end)
        connection.on("connection_encryption_change", on_encryption)

    # --- from the board

    async def _notify(
        self, number: int, characteristic: Characteristic[bytes], value: bytes
    ) -> None:
        connection, radio = self.connections.get(number), self._radio
        if connection is None:
            return
        value = value[: connection.att_mtu - 3]
        radio.traffic.count(len(value))
        if not radio.chance(radio.noise.deaf):
            await self._device.notify_subscriber(connection, characteristic, value)

    async def ask_passkey(self, number: int) -> int:
        """What the board shows on its display."""
        passkey: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._passkeys[number] = passkey
        self._send("K", struct.pack("<H", number))
        return await passkey

    async def disconnect(self, number: int) -> None:
        connection = self.connections.get(number)
        if connection is not None:
            await _quietly(connection.disconnect())

    async def disconnect_all(self) -> None:
        for number in tuple(self.connections):
            await self.disconnect(number)

    async def power_off(self) -> None:
        try:
            await self.disconnect_all()
            await self._device.stop_advertising()  # which the controller would go on with
            await self._device.power_off()
        except (core.BaseBumbleError, asyncio.CancelledError):
            pass  # it was not on


class _Showing(PairingDelegate):
    """Pairing at the board, which has only a display."""

    def __init__(self, board: _Peripheral, number: int) -> None:
        super().__init__(PairingDelegate.IoCapability.DISPLAY_OUTPUT_ONLY)
        self._board = board
        self._number = number

    async def generate_passkey(self) -> int:
        return await self._board.ask_passkey(self._number)

    async def display_number(self, number: int, digits: int) -> None:
        pass


class _Typing(PairingDelegate):
    """Pairing at the desk, where somebody types."""

    def __init__(self, radio: Radio) -> None:
        super().__init__(PairingDelegate.IoCapability.KEYBOARD_INPUT_ONLY)
        self._radio = radio

    async def get_number(self) -> int | None:
        radio = self._radio
        if radio.passkey is not None:
            return radio.passkey
        for _ in range(500):  # the board takes a moment to show its number
            if radio.shown:
                break
            await asyncio.sleep(0.01)
        return radio.shown[-1]


class _Client(BaseBleakClient):
    """bleak's client interface on the desk's host, or on a stranger's."""

    radio: Radio
    device: Device

    def __init__(self, address_or_ble_device: BLEDevice | str, **options: Any) -> None:
        options.setdefault("timeout", 10.0)
        options.setdefault("disconnected_callback", None)
        super().__init__(address_or_ble_device, **options)
        self._connection: Connection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def name(self) -> str:
        return self.address

    @property
    def mtu_size(self) -> int:
        return self._connection.att_mtu if self._connection else 23

    @property
    def is_connected(self) -> bool:
        return self._connection is not None

    async def connect(self, pair: bool, **options: Any) -> None:
        self._loop = asyncio.get_running_loop()
        await self.radio.call(self._connect(pair))

    async def _connect(self, pair: bool) -> None:
        try:
            connection = await self.device.connect(hci.Address(self.address), timeout=self._timeout)
        except (core.BaseBumbleError, hci.HCI_Error) as error:
            raise BleakDeviceNotFoundError(self.address, f"no answer: {error}") from error
        connection.on("disconnection", self._on_end)
        try:
            if pair:
                await connection.pair()
            peer = Peer(connection)
            await peer.request_mtu(self.radio.mtu)
            self.services = await self._discover(peer)
        except (core.BaseBumbleError, ATT_Error, hci.HCI_Error) as error:
            await _quietly(connection.disconnect())
            raise BleakError(str(error)) from error
        self._connection = connection

    async def _discover(self, peer: Peer) -> BleakGATTServiceCollection:
        found = BleakGATTServiceCollection()
        for service in await peer.discover_services():
            kept = BleakGATTService(service, service.handle, str(_uuid(service.uuid)))
            found.add_service(kept)
            for one in await service.discover_characteristics():
                await one.discover_descriptors()
                names: list[Any] = [
                    p.name.lower().replace("_", "-")
                    for p in Characteristic.Properties
                    if p & one.properties and p.name
                ]
                found.add_characteristic(
                    BleakGATTCharacteristic(
                        one, one.handle, _uuid(one.uuid), names, self._max_write, kept
                    )
                )
        return found

    def _max_write(self) -> int:
        return self.mtu_size - 3

    def _on_end(self, reason: int) -> None:
        self._connection = None
        if self._disconnected_callback is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._disconnected_callback)

    async def disconnect(self) -> None:
        if self._connection is not None:
            await self.radio.call(_quietly(self._connection.disconnect()))

    async def pair(self, *args: Any, **options: Any) -> None:
        assert self._connection is not None
        await self.radio.call(self._connection.pair())

    async def unpair(self) -> None:
        pass  # nothing is bonded

    async def read_gatt_char(
        self, characteristic: BleakGATTCharacteristic, **options: Any
    ) -> bytearray:
        return bytearray(await self._do(lambda: characteristic.obj.read_value()))

    async def read_gatt_descriptor(
        self, descriptor: BleakGATTDescriptor, **options: Any
    ) -> bytearray:
        return bytearray(await self._do(lambda: descriptor.obj.read_value()))

    async def write_gatt_char(
        self, characteristic: BleakGATTCharacteristic, data: Any, response: bool
    ) -> None:
        value = bytes(data)
        if not response and len(value) > self._max_write():
            raise BleakError(f"{len(value)} bytes, a packet holds {self._max_write()}")
        await self._do(lambda: characteristic.obj.write_value(value, with_response=response))

    async def write_gatt_descriptor(self, descriptor: BleakGATTDescriptor, data: Any) -> None:
        await self._do(lambda: descriptor.obj.write_value(bytes(data), with_response=True))

    async def start_notify(
        self, characteristic: BleakGATTCharacteristic, callback: NotifyCallback, **options: Any
    ) -> None:
        loop = asyncio.get_running_loop()

        def take(value: bytes) -> None:
            loop.call_soon_threadsafe(callback, bytearray(value))

        await self._do(lambda: characteristic.obj.subscribe(take))

    async def stop_notify(self, characteristic: BleakGATTCharacteristic) -> None:
        await self._do(lambda: characteristic.obj.unsubscribe())

    async def _do(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """One ATT procedure. Raises BleakError if it fails, or the link breaks in it."""

        async def run() -> _T:
            if self._connection is None:
                raise BleakError("not connected")
            try:
                return await work()
            except (core.BaseBumbleError, ATT_Error, asyncio.CancelledError) as error:
                raise BleakError(f"{error}") from error

        return await self.radio.call(run())


class _Scanner(BaseBleakScanner):
    """bleak's scanner interface on the desk's host, or on a stranger's."""

    radio: Radio
    device: Device

    def __init__(
        self, detection_callback: Any, service_uuids: list[str] | None, mode: str, **options: Any
    ) -> None:
        super().__init__(detection_callback, service_uuids)

    async def start(self) -> None:
        self.seen_devices = {}
        loop = asyncio.get_running_loop()

        def on_advertisement(found: Advertisement) -> None:
            loop.call_soon_threadsafe(self._take, found)

        self._listener = on_advertisement
        self.device.on("advertisement", on_advertisement)
        await self.radio.call(self.device.start_scanning(filter_duplicates=False))

    async def stop(self) -> None:
        self.device.remove_listener("advertisement", self._listener)
        await self.radio.call(self.device.stop_scanning())

    def _take(self, found: Advertisement) -> None:
        # bumble's controller answers a scan request with the advertising data once more.
        response = self.radio.scan_response
        content = core.AdvertisingData.from_bytes(found.data_bytes + response)
        types = core.AdvertisingData.Type
        name = content.get(types.COMPLETE_LOCAL_NAME)
        uuids = content.get(types.COMPLETE_LIST_OF_128_BIT_SERVICE_CLASS_UUIDS) or []
        data = AdvertisementData(
            local_name=str(name) if name else None,
            manufacturer_data={},
            service_data={},
            service_uuids=[_uuid(uuid) for uuid in uuids],
            tx_power=None,
            rssi=found.rssi,
            platform_data=(),
        )
        if not self.is_allowed_uuid(data.service_uuids):
            return
        address = str(found.address).split("/")[0]
        device = self.create_or_update_device(address, address, data.local_name, found, data)
        self.call_detection_callbacks(device, data)


async def _quietly(work: Awaitable[None]) -> None:
    with contextlib.suppress(core.BaseBumbleError, hci.HCI_Error):  # it was gone already
        await work


def _uuid(uuid: Any) -> str:
    """``uuid`` as bleak writes it: 128 bits, lower case."""
    digits: str = uuid.to_hex_str().lower()
    if len(digits) == 4:
        digits = f"0000{digits}00001000800000805f9b34fb"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
