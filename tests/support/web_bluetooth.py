"""``navigator.bluetooth`` of a page, with a virtual board's radio behind it.

Chromium's emulated adapter (DevTools protocol, domain BluetoothEmulation) hands over what the page
does; a bleak client of `mpota.virtual.radio` does it over the air. What the emulation lacks an init
script brings: notifications, and word of a page that disconnects.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from bleak import BleakClient, BleakScanner
from bleak.exc import BleakError
from mpota.push.ble import CONTROL, DATA, SERVICE
from mpota.push.wire import Kind
from mpota.virtual.radio import BOARD_ADDRESS, Radio
from playwright.async_api import Error, Page

from tests.support.radio import NAME

_FIND_S = 2.0
_CCCD = "00002902-0000-1000-8000-00805f9b34fb"  # without it: no notifications
_CHARACTERISTICS = (
    (CONTROL, {"write": True, "notify": True}),
    (DATA, {"writeWithoutResponse": True}),
)
# Answers to the page: Core Specification, 3.F.3.4.1.1 "unlikely error", 1.F.2 "connection timeout".
_UNLIKELY, _NO_CONNECTION = 0x0E, 0x08
_STANDIN = """(() => {
  const started = {}
  const {startNotifications} = BluetoothRemoteGATTCharacteristic.prototype
  BluetoothRemoteGATTCharacteristic.prototype.startNotifications = function () {
    started[this.uuid] = this
    return startNotifications.call(this)
  }
  window.__notify = ([uuid, text]) => {
    const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0))
    const value = new DataView(bytes.buffer)
    Object.defineProperty(started[uuid], 'value', {value, configurable: true})
    started[uuid].dispatchEvent(new Event('characteristicvaluechanged', {bubbles: true}))
  }
  const {disconnect} = BluetoothRemoteGATTServer.prototype
  BluetoothRemoteGATTServer.prototype.disconnect = function () {
    disconnect.call(this)
    __hungUp()
  }
})()"""


class _Air:
    """Does what the page asks for, one thing after the other."""

    def __init__(self, page: Page, radio: Radio, browser: Any, break_after: int | None) -> None:
        self._page = page
        self._break_after = break_after
        self._radio = radio
        self._browser = browser
        self._client: BleakClient | None = None
        self.starts: list[int] = []  # positions of READY
        self._names: dict[str, str] = {}  # of characteristics, by what Chromium calls them
        self.todo: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()

    async def emulate(self, method: str, **values: Any) -> dict[str, Any]:
        found: dict[str, Any] = await self._browser.send(f"BluetoothEmulation.{method}", values)
        return found

    async def work(self) -> None:
        while True:
            kind, event = await self.todo.get()
            await getattr(self, f"_{kind}")(event)

    async def _gatt(self, event: dict[str, Any]) -> None:
        code = 0
        if event["type"] == "connection":
            code = 0 if await self._connect() else _NO_CONNECTION
        await self.emulate(
            "simulateGATTOperationResponse", address=BOARD_ADDRESS, type=event["type"], code=code
        )

    async def _connect(self) -> bool:
        device = await BleakScanner.find_device_by_filter(
            lambda _, data: SERVICE in data.service_uuids, _FIND_S, backend=self._radio.scanner
        )
        if device is None:
            return False
        client = BleakClient(device, backend=self._radio.client, disconnected_callback=self._lost)
        try:
            await client.connect()
        except BleakError:  # it went down meanwhile
            return False
        self._client = client
        service = await self.emulate("addService", address=BOARD_ADDRESS, serviceUuid=SERVICE)
        for uuid, properties in _CHARACTERISTICS:
            made = await self.emulate(
                "addCharacteristic",
                serviceId=service["serviceId"],
                characteristicUuid=uuid,
                properties=properties,
            )
            self._names[made["characteristicId"]] = uuid
            if "notify" in properties:
                await self.emulate(
                    "addDescriptor",
                    characteristicId=made["characteristicId"],
                    descriptorUuid=_CCCD,
                )
        return True

    async def _characteristic(self, event: dict[str, Any]) -> None:
        uuid, is_answered = self._names[event["characteristicId"]], True
        code = 0
        try:
            if self._client is None:
                raise BleakError("not connected")
            if event["type"] == "write":
                is_answered = event["writeType"] != "write-without-response"
                await self._write(uuid, base64.b64decode(event["data"]), is_answered)
            elif event["type"] == "subscribe-to-notifications":
                await self._client.start_notify(uuid, self._notified)
        except BleakError:
            code = _UNLIKELY
        if is_answered:
            with suppress(Error):  # the link broke meanwhile
                await self.emulate(
                    "simulateCharacteristicOperationResponse",
                    characteristicId=event["characteristicId"],
                    type=event["type"],
                    code=code,
                )

    async def _write(self, uuid: str, data: bytes, is_answered: bool) -> None:
        """As systems do it, pairing where the board asks for that."""
        assert self._client is not None
        if self._break_after is not None and uuid == DATA:
            self._break_after -= len(data)
            if self._break_after < 0:
                self._break_after = None
                await asyncio.to_thread(self._radio.break_link)
        try:
            await self._client.write_gatt_char(uuid, data, response=is_answered)
        except BleakError as error:
            if "INSUFFICIENT" not in str(error):
                raise
            await self._client.pair()
            await self._client.write_gatt_char(uuid, data, response=is_answered)

    def _notified(self, _: object, value: bytearray) -> None:
        if value[:2] == bytes((0, Kind.READY)):  # all of it, or its first fragment
            self.starts.append(int.from_bytes(value[2:6], "little"))
        self.todo.put_nowait(("notify", {"value": bytes(value)}))

    async def _notify(self, event: dict[str, Any]) -> None:
        text = base64.b64encode(event["value"]).decode()
        await self._page.evaluate("__notify", [CONTROL, text])

    def _lost(self, client: BleakClient) -> None:
        self.todo.put_nowait(("gone", {"client": client}))

    async def _gone(self, event: dict[str, Any]) -> None:
        if event["client"] is self._client:
            self._client = None
            with suppress(Error):  # the page hung up itself
                await self.emulate("simulateGATTDisconnection", address=BOARD_ADDRESS)

    async def hang_up(self, source: object = None) -> None:
        if self._client is not None:
            await self._client.disconnect()


@asynccontextmanager
async def in_reach(
    page: Page, radio: Radio, *, break_after: int | None = None
) -> AsyncIterator[list[int]]:
    """The board of ``radio`` is the one that the page gets to choose. Before its first `goto`.

    ``break_after``: once so many bytes of packets were sent the link breaks. Gives the positions
    from which the board lets the page go on, one for each connection with an update.
    """
    assert page.context.browser is not None
    browser = await page.context.browser.new_browser_cdp_session()
    prompts = await page.context.new_cdp_session(page)
    air = _Air(page, radio, browser, break_after)
    browser.on(
        "BluetoothEmulation.gattOperationReceived",
        lambda event: air.todo.put_nowait(("gatt", event)),
    )
    browser.on(
        "BluetoothEmulation.characteristicOperationReceived",
        lambda event: air.todo.put_nowait(("characteristic", event)),
    )
    answered = set()
    tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(air.work())]

    def choose(event: dict[str, Any]) -> None:
        # It comes twice for one request, and a second answer crashes the browser.
        if event["devices"] and event["id"] not in answered:
            answered.add(event["id"])
            choice = {"id": event["id"], "deviceId": event["devices"][0]["id"]}
            tasks.append(asyncio.ensure_future(prompts.send("DeviceAccess.selectPrompt", choice)))

    prompts.on("DeviceAccess.deviceRequestPrompted", choose)
    await page.expose_binding("__hungUp", air.hang_up)
    await page.add_init_script(_STANDIN)
    await air.emulate("enable", state="powered-on", leSupported=True)
    await air.emulate(
        "simulatePreconnectedPeripheral",
        address=BOARD_ADDRESS,
        name=NAME,
        manufacturerData=[],
        knownServiceUuids=[SERVICE],
    )
    await prompts.send("DeviceAccess.enable")
    try:
        yield air.starts
    finally:
        for task in tasks:
            task.cancel()
        await air.hang_up()
        await air.emulate("disable")
        await browser.detach()
