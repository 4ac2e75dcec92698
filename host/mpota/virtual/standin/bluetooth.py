# Stand-in for MicroPython's `bluetooth` module on ESP32 (NimBLE): a peripheral, the parts that one
# needs. The radio is in the host process: mpota/virtual/radio.py, reached through a socket.
#
# Either way: u16 size of what follows, kind (a character), payload.

import _thread
import gc
import json
import select
import socket
import struct
from errno import EINVAL, ENODEV, ENOMEM, ENOTCONN

import link
import micropython
from micropython import const

FLAG_READ = const(0x0002)
FLAG_WRITE_NO_RESPONSE = const(0x0004)
FLAG_WRITE = const(0x0008)
FLAG_NOTIFY = const(0x0010)
FLAG_INDICATE = const(0x0020)

_IRQ_CENTRAL_CONNECT = const(1)
_IRQ_CENTRAL_DISCONNECT = const(2)
_IRQ_GATTS_WRITE = const(3)
_IRQ_MTU_EXCHANGED = const(21)
_IRQ_ENCRYPTION_UPDATE = const(28)
_IRQ_PASSKEY_ACTION = const(31)

_DEFAULT_MTU = const(256)
_DEFAULT_SIZE = const(20)  # MP_BLUETOOTH_DEFAULT_ATTR_LEN
_MAX_CONNECTIONS = const(4)  # CONFIG_BT_NIMBLE_MAX_CONNECTIONS
_FIRST_HANDLE = const(16)  # the GAP and GATT services come before
_ADDRESS = b"\x24\x0a\xc4\xc0\xff\xf0"
_AGAIN_MS = const(20)
_IPPROTO_TCP = const(6)
_TCP_NODELAY = const(1)

# Set by boot_app.py: where the radio listens, 0 if there is none.
_port = 0

# Made before the app's heap is measured.
_buf = memoryview(bytearray(4096))  # the event that comes
_taken = bytearray(5)
_ble = None


class UUID:
    # extmod/modbluetooth.c: 16 bit from an int, else 128 bit from a text.
    def __init__(self, value):
        if isinstance(value, int):
            self._text = "0000%04x-0000-1000-8000-00805f9b34fb" % value
            return
        digits = value.replace("-", "")
        if len(digits) != 32:
            raise ValueError("UUID too short" if len(digits) < 32 else "UUID too long")
        bytes.fromhex(digits)
        self._text = value.lower()

    def __repr__(self):
        return "UUID('%s')" % self._text


def BLE():
    global _ble
    if _ble is None:
        _ble = _BLE()
    return _ble


class _BLE:
    def __init__(self):
        self._socket = None
        self._handler = None
        self._values = {}  # handle -> [buffer, size of the value in it]
        self._conns = set()
        self._mtu = _DEFAULT_MTU
        self._name = b"MPY ESP32"
        self._have = 0  # bytes in _buf
        self._taken = 0  # writes that the radio has not been told of
        self._scheduled = _thread.allocate_lock()
        self._delivery = self._deliver

    def active(self, is_active=None):
        if is_active and self._socket is None:
            self._connect()
        elif is_active is False and self._socket is not None:
            self._socket.close()
            self._socket = None
            self._conns.clear()
        return self._socket is not None

    def _connect(self):
        if not _port:
            raise OSError(ENODEV)
        self._socket = socket.socket()
        self._socket.connect(socket.getaddrinfo("127.0.0.1", _port)[0][-1])
        self._socket.setsockopt(_IPPROTO_TCP, _TCP_NODELAY, 1)
        self._have = self._taken = 0
        _thread.start_new_thread(self._wait, (self._socket,))

    def config(self, *names, **values):
        if names:
            if names == ("mac",):
                return 0, _ADDRESS
            if names == ("mtu",):
                return self._mtu
            if names == ("gap_name",):
                return self._name
            raise ValueError("unknown config param")
        for name, value in values.items():
            if name == "mtu":
                if not 23 <= value <= 527:
                    raise OSError(EINVAL)
                self._mtu = value
                self._send("M", struct.pack("<H", value))
            elif name == "gap_name":
                self._name = value
            elif name == "mitm":
                self._send("S", bytes((bool(value),)))
            elif name not in ("bond", "le_secure", "io", "rxbuf", "addr_mode"):
                raise ValueError("unknown config param")

    def irq(self, handler):
        self._handler = handler

    def gap_advertise(self, interval_us, adv_data=b"", *, resp_data=b"", connectable=True):
        if interval_us is None:
            self._send("V", b"")
        else:
            if len(adv_data) > 31 or len(resp_data) > 31:
                raise OSError(EINVAL)
            if connectable and len(self._conns) >= _MAX_CONNECTIONS:
                raise OSError(ENOMEM)  # ble_gap.c: ble_gap_adv_start
            self._send("V", bytes((len(adv_data),)) + adv_data + resp_data)

    def gap_disconnect(self, conn):
        if conn not in self._conns:
            raise OSError(ENOTCONN)
        self._send("D", struct.pack("<H", conn))

    def gap_passkey(self, conn, action, passkey):
        if conn not in self._conns:
            raise OSError(ENOTCONN)
        self._send("K", struct.pack("<HI", conn, passkey))

    def gatts_register_services(self, services):
        # As NimBLE: a handle for the service, and for each characteristic one for its
        # declaration, one for its value, one for the CCCD if it notifies.
        self._values = {}
        handle = _FIRST_HANDLE
        found = []
        description = []
        for service in services:
            handles = []
            characteristics = []
            handle += 1
            for characteristic in service[1]:
                flags = characteristic[1]
                value_handle = handle + 1
                handle += 3 if flags & (FLAG_NOTIFY | FLAG_INDICATE) else 2
                handles.append(value_handle)
                characteristics.append((characteristic[0]._text, flags, value_handle))
                self._values[value_handle] = [bytearray(_DEFAULT_SIZE), 0]
            found.append(tuple(handles))
            description.append((service[0]._text, characteristics))
        self._send("R", json.dumps(description).encode())
        return tuple(found)

    def gatts_set_buffer(self, handle, size, append=False):
        self._values[handle] = [bytearray(size), 0]

    def gatts_read(self, handle):
        buf, size = self._values[handle]
        return bytes(memoryview(buf)[:size])

    def gatts_write(self, handle, data, send_update=False):
        self._put(handle, data)

    def _put(self, handle, data):
        value = self._values[handle]
        size = min(len(data), len(value[0]))  # what does not fit is cut off
        value[0][:size] = data[:size]
        value[1] = size

    def gatts_notify(self, conn, handle, data=None):
        if conn not in self._conns:
            raise OSError(ENOTCONN)
        if data is None:
            data = self.gatts_read(handle)
        self._send("N", struct.pack("<HH", conn, handle) + data)

    def _send(self, kind, payload):
        if self._socket is None:
            raise OSError(ENODEV)
        self._socket.write(struct.pack("<HB", 1 + len(payload), ord(kind)) + payload)

    # Events: the thread waits for them; the handler runs between two bytecodes of the main thread,
    # as on a board it does with the GIL. What waits in the socket meanwhile is what NimBLE holds.
    # All that is C on a board works there without the heap: what finds none here is done again.

    def _wait(self, own):
        link.mask_thread()
        poll = select.poll()
        poll.register(own, select.POLLIN)
        while self._socket is own:
            try:
                poll.poll(_AGAIN_MS if self._is_behind() else 1000)
            except (OSError, MemoryError):
                continue
            if self._socket is not own:
                return
            self._scheduled.acquire()
            try:
                micropython.schedule(self._delivery, own)
            except RuntimeError:  # the queue is full
                self._scheduled.release()

    def _deliver(self, own):
        try:
            if self._socket is own and not link.is_busy():
                self._receive()
        except MemoryError:
            gc.collect()
        finally:
            self._scheduled.release()

    def _is_behind(self):
        return self._have or self._taken

    def _receive(self):
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        while self._have or poll.poll(0):
            # At most one event is read at a time, else a board without power would have had them.
            while self._have < 2 or self._have < self._due():
                due = self._due() if self._have >= 2 else 2
                count = self._socket.readinto(_buf[self._have : due])
                if not count:
                    self._socket.close()
                    self._socket = None
                    return
                self._have += count
            self._handle(_buf[2], _buf[3 : self._have])
            self._have = 0
        if self._taken:
            struct.pack_into("<HBH", _taken, 0, 3, ord("T"), self._taken)
            self._socket.write(_taken)
            self._taken = 0

    def _due(self):
        return 2 + (_buf[0] | _buf[1] << 8)

    def _handle(self, kind, payload):
        # MemoryError: the app does not know of it.
        (conn,) = struct.unpack_from("<H", payload)
        if kind == ord("W"):
            (handle,) = struct.unpack_from("<H", payload, 2)
            self._put(handle, payload[4:])
            self._call(_IRQ_GATTS_WRITE, (conn, handle))
            self._taken += 1
        elif kind == ord("C"):
            self._conns.add(conn)
            self._call(_IRQ_CENTRAL_CONNECT, (conn, payload[2], payload[3:9]))
        elif kind == ord("D"):
            self._conns.discard(conn)
            self._call(_IRQ_CENTRAL_DISCONNECT, (conn, payload[2], payload[3:9]))
        elif kind == ord("M"):
            self._call(_IRQ_MTU_EXCHANGED, struct.unpack("<HH", payload))
        elif kind == ord("E"):
            self._call(_IRQ_ENCRYPTION_UPDATE, (conn, 1, payload[2], 0, 16))
        elif kind == ord("K"):
            self._call(_IRQ_PASSKEY_ACTION, (conn, 3, 0))

    def _call(self, event, data):
        if self._handler is None:
            return
        try:
            self._handler(event, data)
        except Exception as error:
            import sys

            print("Unhandled exception in IRQ callback handler")
            sys.print_exception(error)
            self._handler = None
