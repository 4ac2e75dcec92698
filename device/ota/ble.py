"""Takes updates over Bluetooth Low Energy: `mpota ble push` or a phone is at the other end.

    ota.ble.Peripheral("greenhouse").run()

advertises until an update has come, and restarts into it. Apps with a main loop of their own call
`start` once and `poll` several times a second, those with asyncio await `serve`.
docs/PROTOCOL.md says what goes over the air.
"""

from errno import ENOMEM
from time import sleep_ms, ticks_add, ticks_diff, ticks_ms

import bluetooth
from micropython import const

from .receive import MAX_MESSAGE, Receiver, busy, send_error

SERVICE = "6d706f74-6100-4b1e-9c53-7a0f5d2e8b46"
CONTROL = "6d706f74-6101-4b1e-9c53-7a0f5d2e8b46"
DATA = "6d706f74-6102-4b1e-9c53-7a0f5d2e8b46"

_IRQ_CENTRAL_CONNECT = const(1)
_IRQ_CENTRAL_DISCONNECT = const(2)
_IRQ_GATTS_WRITE = const(3)
_IRQ_MTU_EXCHANGED = const(21)
_IRQ_PASSKEY_ACTION = const(31)

_FLAG_WRITE_NO_RESPONSE = const(0x0004)
_FLAG_WRITE = const(0x0008)
_FLAG_NOTIFY = const(0x0010)
_FLAG_WRITE_ENCRYPTED = const(0x1000)
_FLAG_WRITE_AUTHENTICATED = const(0x2000)
_IO_DISPLAY_ONLY = const(0)
_PASSKEY_DISPLAY = const(3)

_MIN_MTU = const(23)
_DEFAULT_MTU = const(247)  # a packet is one PDU of the link layer, one buffer of NimBLE
_MAX_MTU = const(517)
_ATT_HEADER = const(3)
_MAX_VALUE = const(512)  # of an attribute: Core Specification, 3.F.3.2.9
_OFFSET_SIZE = const(2)

# While the flash is busy nothing takes packets from NimBLE, which has 24 buffers for them
# (CONFIG_BT_NIMBLE_TRANSPORT_ACL_FROM_LL_COUNT); what finds none is lost without a word.
_MAX_PACKETS = const(20)
_MAX_CREDIT = const(4096)
_RING_SIZE = const(5120)

_RECORD_HEAD = const(5)
_RESERVE = const(8)  # of the ring, for the end of a connection
_LOST = const(0)  # kinds of records in the ring
_ON_CONTROL = const(1)
_ON_DATA = const(2)

_MORE = const(0x80)  # head of a fragment: others follow; the rest counts them
_HANG_UP_MS = const(500)  # for the last words to get through
_RESTART_MS = const(5000)  # the client should have gone by then
_POLL_MS = const(5)
_INTERVAL_US = const(100000)


class Peripheral:
    """A BLE peripheral that takes updates.

    ``name``: what it is found by, up to 29 bytes; by default "mpota-" and the end of its address.
    ``passkey`` (six digits): who writes has to pair with it first; nothing is bonded, so the
    passkey is due in each session. ``mtu``: the largest that is agreed to, 23 to 517.
    ``reboot``: restart into a complete update. All else is for `Receiver`: ``secret``, ``accept``,
    ``progress``, ``version``, ``silence``, ``keep``, ``force``, ``verify``.
    """

    def __init__(
        self, name=None, *, passkey=None, mtu=_DEFAULT_MTU, reboot=True, ble=None, **options
    ):
        if not _MIN_MTU <= mtu <= _MAX_MTU:
            raise ValueError("mtu is %d, 23 to 517 can be" % mtu)
        self.receiver = Receiver(**options)
        self._name = name
        self._passkey = passkey
        self._max_mtu = mtu
        self._reboot = reboot
        self._ble = ble or bluetooth.BLE()
        self._ring = _Ring(_RING_SIZE)
        self._message = bytearray(MAX_MESSAGE)
        self._size = 0  # of the message at hand
        self._fragments = 0
        self._mtus = {}  # connection -> MTU
        self._conn = None  # of the client that is served
        self._link = _Link(self)  # to it
        self._is_starved = False  # an event came that there was no memory for
        self._refused = None  # a connection whose client has to hear that
        self._hang_up_at = None
        self._restart_at = None
        self._is_advertising = False
        self._other_irq = None

    def start(self, services=(), irq=None):
        """Switch the radio on, register the service, advertise.

        ``services``: those of the app, as for gatts_register_services, which replaces all that was
        registered before; their handles are returned. ``irq``: the app's own handler.
        """
        ble = self._ble
        self._other_irq = irq
        ble.active(True)
        ble.config(mtu=self._max_mtu)
        flags = 0
        if self._passkey is not None:
            ble.config(bond=False, mitm=True, le_secure=True, io=_IO_DISPLAY_ONLY)
            flags = _FLAG_WRITE_ENCRYPTED | _FLAG_WRITE_AUTHENTICATED
        ble.irq(self._irq)
        own = (
            bluetooth.UUID(SERVICE),
            (
                (bluetooth.UUID(CONTROL), _FLAG_WRITE | _FLAG_NOTIFY | flags),
                (bluetooth.UUID(DATA), _FLAG_WRITE_NO_RESPONSE | flags),
            ),
        )
        services = list(services)
        services.append(own)
        handles = ble.gatts_register_services(services)
        self._handles = self._control, self._data = handles[-1]
        size = min(self._max_mtu - _ATT_HEADER, _MAX_VALUE)
        ble.gatts_set_buffer(self._control, size)
        ble.gatts_set_buffer(self._data, size)
        if self._name is None:
            self._name = "mpota-" + ble.config("mac")[1][4:].hex()
        uuid = bytes(reversed(bytes.fromhex(SERVICE.replace("-", ""))))
        name = self._name.encode()[:29]
        # AD structures: Core Specification Supplement, part A: flags, all 128-bit UUIDs; the name.
        self._advertised = b"\x02\x01\x06" + bytes((1 + len(uuid), 0x07)) + uuid
        self._scan_response = bytes((1 + len(name), 0x09)) + name
        self._advertise()
        return handles[:-1]

    def stop(self):
        """Switch the radio off; an update under way is given up."""
        self.receiver.close()
        self._ble.irq(None)
        self._ble.active(False)

    def run(self):
        """Start, and take updates until one is complete; restart into it, if that is due."""
        self.start()
        while not self.receiver.is_done or self._conn is not None or self._has_to_restart():
            self.poll()
            sleep_ms(_POLL_MS)

    async def serve(self):
        """Start, and take updates as long as the task runs."""
        from asyncio import sleep_ms

        self.start()
        try:
            while True:
                self.poll()
                await sleep_ms(_POLL_MS)
        finally:
            self.stop()

    def poll(self):
        """Do what there is to do: several times a second, the more often the faster."""
        try:
            while self._handle_next():
                pass
            self.receiver.poll()
            self._refuse()
        except MemoryError:
            self._is_starved = True
        if self._is_starved:
            self._is_starved = False
            self._give_up()
        now = ticks_ms()
        if self._hang_up_at is not None and ticks_diff(now, self._hang_up_at) >= 0:
            self._hang_up()
        if not self._mtus and not self._is_advertising:
            self._advertise()
        self._restart_if_due(now)

    def _refuse(self):
        """Tell a client that another one is served."""
        conn, self._refused = self._refused, None
        if conn is not None:
            link = _Link(self)
            link.conn = conn
            send_error(link, busy())

    def _give_up(self):
        """There is no memory for what the client wants: end its session, and let it know why."""
        conn = self._conn
        if self.receiver.link is None and conn is not None and self._hang_up_at is None:
            self._open(conn)  # there was none for its first message
        self.receiver.fail(MemoryError())

    def _open(self, conn):
        self._link.conn = conn
        self.receiver.open(self._link)

    def _has_to_restart(self):
        receiver = self.receiver
        return self._reboot and receiver.is_done and receiver.wants_restart

    def _restart_if_due(self, now):
        if not self._has_to_restart():
            return
        if self._restart_at is None:
            self._restart_at = ticks_add(now, _RESTART_MS)
        elif self._conn is None or ticks_diff(now, self._restart_at) >= 0:
            import machine

            machine.reset()

    def _advertise(self):
        self._is_advertising = True
        self._ble.gap_advertise(_INTERVAL_US, self._advertised, resp_data=self._scan_response)

    # --- events: on a board in NimBLE's task, between two bytecodes of whatever runs

    def _irq(self, event, data):
        """What is raised here would be the last event: modbluetooth.c: invoke_irq_handler."""
        is_own = event == _IRQ_GATTS_WRITE and data[1] in self._handles
        try:
            if is_own:
                self._take_write(data[0], data[1])
            else:
                self._take_event(event, data)
        except MemoryError:
            self._is_starved = is_own  # the rest can be done without: see `_mtu`
        if is_own or not self._other_irq:
            return None
        return self._other_irq(event, data)

    def _take_event(self, event, data):
        conn = data[0]
        if event == _IRQ_CENTRAL_CONNECT:
            self._is_advertising = False  # NimBLE has stopped it
            self._mtus[conn] = _MIN_MTU
        elif event == _IRQ_CENTRAL_DISCONNECT:
            self._mtus.pop(conn, None)
            if conn == self._conn:
                self._conn = None
                self._ring.put(_LOST, conn, b"")
        elif event == _IRQ_MTU_EXCHANGED:
            self._mtus[conn] = data[1]
        elif event == _IRQ_PASSKEY_ACTION and data[1] == _PASSKEY_DISPLAY and self._passkey:
            try:
                self._ble.gap_passkey(conn, _PASSKEY_DISPLAY, self._passkey)
            except OSError:  # it has gone
                pass

    def _take_write(self, conn, handle):
        """Copy what was written into the ring. A message binds a connection that is the first."""
        if self._conn is None and handle == self._control:
            self._conn = conn
        if conn == self._conn:
            kind = _ON_DATA if handle == self._data else _ON_CONTROL
            self._ring.put(kind, conn, self._ble.gatts_read(handle))
        elif handle == self._control:
            self._refused = conn

    # --- the rest: in the app's own time

    def _handle_next(self):
        """One record of the ring; False if there is none."""
        record = self._ring.peek()
        if record is None:
            return False
        try:
            kind = record[0]
            if kind == _ON_DATA:
                self.receiver.data(record[3:])
            elif kind == _ON_CONTROL:
                self._take_fragment(record[1] | record[2] << 8, record[3:])
            else:
                self._hang_up_at = None
                self._size = self._fragments = 0
                self.receiver.lost()
        finally:
            self._ring.drop()
        return True

    def _take_fragment(self, conn, fragment):
        """Put a message together. A fragment that is not the next one ends it."""
        if not len(fragment) or self._hang_up_at is not None:
            return
        number = fragment[0] & ~_MORE
        end = self._size + len(fragment) - 1
        if number == 0:
            self._size = 0
            end = len(fragment) - 1
        elif number != self._fragments:
            end = MAX_MESSAGE + 1
        if end > MAX_MESSAGE:
            self._size = self._fragments = 0
            message = memoryview(b"")
        else:
            self._message[self._size : end] = fragment[1:]
            self._size = end
            self._fragments = number + 1
            if fragment[0] & _MORE:
                return
            message = memoryview(self._message)[:end]
            self._size = self._fragments = 0
        if self.receiver.link is None:
            self._open(conn)
        self.receiver.message(message)

    def _mtu(self, conn):
        return min(self._mtus.get(conn, _MIN_MTU), self._max_mtu)

    def _hang_up(self):
        self._hang_up_at = None
        conn = self._conn
        if conn is not None:
            try:
                self._ble.gap_disconnect(conn)
            except OSError:  # it is not connected any more
                pass


class _Link:
    """The control characteristic of one connection: see Receiver."""

    conn = None

    def __init__(self, peripheral):
        self._peripheral = peripheral

    @property
    def credit(self):
        payload = self._peripheral._mtu(self.conn) - _ATT_HEADER - _OFFSET_SIZE
        return min(_MAX_CREDIT, _MAX_PACKETS * payload)

    def send(self, message):
        room = self._peripheral._mtu(self.conn) - _ATT_HEADER - 1
        count = (len(message) + room - 1) // room
        for number in range(count):
            head = number if number == count - 1 else number | _MORE
            piece = message[number * room : (number + 1) * room]
            if not self._notify(bytes((head,)) + piece):
                return

    def _notify(self, fragment):
        """False if it cannot be sent: NimBLE has had no buffer for a second, or nobody is there."""
        peripheral = self._peripheral
        for _ in range(100):
            try:
                peripheral._ble.gatts_notify(self.conn, peripheral._control, fragment)
                return True
            except OSError as error:
                if error.errno != ENOMEM:
                    return False
            sleep_ms(10)
        return False

    def close(self):
        self._peripheral._hang_up_at = ticks_add(ticks_ms(), _HANG_UP_MS)


class _Ring:
    """Records, for one that puts and one that takes: u16 size, u8 kind, u16 connection, content.

    Each stands in one piece. What finds no room is lost, but there is always some for the end of a
    connection.
    """

    def __init__(self, size):
        self._buf = bytearray(size)
        self._view = memoryview(self._buf)
        self._limit = size
        self._put = self._get = 0

    def put(self, kind, conn, data):
        size = _RECORD_HEAD + len(data)
        room = size if kind == _LOST else size + _RESERVE
        at, first = self._put, self._get
        if at >= first:
            if at + room > self._limit:  # it does not fit behind the others: from the start again
                if room >= first:
                    return
                if at + 2 <= self._limit:
                    self._buf[at] = self._buf[at + 1] = 0
                at = 0
        elif at + room >= first:
            return
        buf = self._buf
        buf[at] = size & 0xFF
        buf[at + 1] = size >> 8
        buf[at + 2] = kind
        buf[at + 3] = conn & 0xFF
        buf[at + 4] = conn >> 8
        if data:  # the end of a connection must be told without memory for a slice
            buf[at + _RECORD_HEAD : at + size] = data
        self._put = at + size  # last: from now on it is there

    def peek(self):
        """The next record, None if there is none; good until `drop`."""
        at = self._get
        if at == self._put:
            return None
        size = self._size_at(at)
        if not size:
            self._get = at = 0
            if at == self._put:
                return None
            size = self._size_at(at)
        return self._view[at + 2 : at + size]

    def drop(self):
        self._get += self._size_at(self._get)

    def _size_at(self, at):
        if at + 2 > self._limit:
            return 0
        return self._buf[at] | self._buf[at + 1] << 8
