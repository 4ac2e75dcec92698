"""Takes updates over Bluetooth Low Energy: `mpota ble push` or a phone is at the other end.

    ota.ble.Peripheral("greenhouse", secret=b"...").run()

advertises until an update has come, and restarts into it. Apps with a main loop of their own call
`start` once and `poll` several times a second, those with asyncio await `serve`.
docs/PROTOCOL.md says what goes over the air.
"""

from errno import ENOMEM
from os import urandom
from time import sleep_ms

import bluetooth
from micropython import const

from .push_receiver import MAX_MESSAGE, Receiver, busy, send_error

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
_OF_A_CONNECTION = (_IRQ_CENTRAL_DISCONNECT, _IRQ_MTU_EXCHANGED, _IRQ_PASSKEY_ACTION)

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

_RECORD_HEAD = const(4)
_ON_CONTROL = const(0)  # kinds of records in the ring
_ON_DATA = const(1)

_MORE = const(0x80)  # head of a fragment: others follow; the rest counts them
_MAX_PENDING = const(192)  # bytes of waiting messages of a client whose update it is not
_MAX_CLIENTS = const(5)  # NimBLE has four, and one may still be on its way out
_IDLE_MS = const(10000)  # for a connection that says nothing
_FULL_MS = const(3000)  # the same while all places are taken
_PAIRING_MS = const(40000)  # somebody types: Core Specification, 3.H.3.4 has 30 s for it
_HANG_UP_MS = const(500)  # for the last words to get through
_RETRY_MS = const(200)
_RESTART_MS = const(5000)  # the client should have gone by then
_POLL_MS = const(5)
_INTERVAL_US = const(100000)


class Peripheral:
    """A BLE peripheral that takes updates.

    ``name``: what it is found by, up to 29 bytes; by default "mpota-" and the end of its address.
    Who may update it: who knows ``secret``, or has paired, or comes with what a key on the board
    has signed; with ``open=True`` anyone.

    ``passkey``: a function that shows a number to somebody who stands there, for each pairing a
    new one, with leading zeros up to six digits; who writes has to pair with it first. Nothing is
    bonded, so that is due in each session. An int is a fixed one, which is weak: six digits, and
    each pairing that somebody tries or hears tells some of them.

    ``mtu``: the largest that is agreed to, 23 to 517. ``reboot``: restart into a complete update.
    All else is for `Receiver`: ``accept``, ``progress``, ``version``, ``silence``, ``keep``,
    ``force``, ``verify``.
    """

    def __init__(
        self, name=None, *, passkey=None, mtu=_DEFAULT_MTU, reboot=True, ble=None, **options
    ):
        if not _MIN_MTU <= mtu <= _MAX_MTU:
            raise ValueError("mtu is %d, 23 to 517 can be" % mtu)
        self.receiver = Receiver(is_paired=passkey is not None, **options)
        self._name = name
        self._passkey = passkey
        self._max_mtu = mtu
        self._reboot = reboot
        self._ble = ble or bluetooth.BLE()
        self._ring = _Ring(_RING_SIZE)
        self._clients = [_Client(self, i) for i in range(_MAX_CLIENTS)]  # an event has no memory
        self._restart_in = None
        self._advertise_in = 0
        self._is_advertising = False
        self._has_services = False
        self._other_irq = None

    def start(self, services=(), irq=None):
        """Switch the radio on, register the service, advertise.

        ``services``: those of the app, as for gatts_register_services, which replaces all that was
        registered before; their handles are returned. ``irq``: the app's own handler. Connections
        that do not talk to this service are ended, with ``services`` only where there is no room
        for another one.
        """
        ble = self._ble
        self.receiver.check_keys()
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
        self._has_services = bool(services)
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
        self._is_advertising = False
        for client in self._clients:
            client.conn = None

    def run(self, feed=None):
        """Start, and take updates until one is complete; restart into it, if that is due.

        ``feed()``, as of a machine.WDT, is called between two steps of an update, and in waits.
        Raises StateError when the keys are cleared.
        """
        self.start()
        receiver = self.receiver
        while not receiver.is_done or receiver.active or self._has_to_restart():
            self.poll()
            if feed:
                feed()
            if receiver.is_shut:
                self.stop()
                receiver.check_keys()
            sleep_ms(_POLL_MS)

    async def serve(self):
        """Start, and take updates as long as the task runs. Raises StateError as `run`."""
        from asyncio import sleep_ms

        self.start()
        try:
            while not self.receiver.is_shut:
                self.poll()
                await sleep_ms(_POLL_MS)
        finally:
            self.stop()
        self.receiver.check_keys()

    def poll(self):
        """Do what there is to do: several times a second, the more often the faster."""
        receiver = self.receiver
        try:
            while not receiver.work() and self._handle_next():
                pass
            passed = receiver.poll()
            for client in self._clients:
                client.poll(passed)
            self._advertise_in -= passed
            if not (self._is_advertising or receiver.is_held or receiver.is_shut):
                self._advertise()
            self._restart_if_due(passed)
        except MemoryError:
            for client in self._clients:
                client.is_starved = client.session and client.session is receiver.active

    def _has_to_restart(self):
        return self._reboot and self.receiver.wants_restart

    def _restart_if_due(self, passed):
        if not self._has_to_restart():
            self._restart_in = None
            return
        if self._restart_in is None:
            self._restart_in = _RESTART_MS
        self._restart_in -= passed
        if not self.receiver.active or self._restart_in <= 0:
            import machine

            machine.reset()

    def _advertise(self):
        if self._advertise_in > 0:
            return
        try:
            self._ble.gap_advertise(_INTERVAL_US, self._advertised, resp_data=self._scan_response)
            self._is_advertising = True
        except OSError:  # no room for another connection: the least useful one has to go
            self._advertise_in = _RETRY_MS
            client = min(self._clients, key=_Client.worth)
            if client.worth() < _IDLE_MS - _FULL_MS:
                client.send_away()

    # --- events: on a board in NimBLE's task, between two bytecodes of whatever runs

    def _irq(self, event, data):
        """What is raised here would be the last event: modbluetooth.c: invoke_irq_handler."""
        is_own = event == _IRQ_GATTS_WRITE and data[1] in self._handles
        client = None
        for one in self._clients:
            if one.conn == data[0] and (is_own or event in _OF_A_CONNECTION):
                client = one
        try:
            if event == _IRQ_CENTRAL_CONNECT:
                self._is_advertising = False  # NimBLE has stopped it
                for one in self._clients:
                    if one.conn is None and not one.is_lost:
                        one.connect(data)
                        break
            elif client:
                client.take_event(event, data)
        except MemoryError:
            if is_own:
                client.is_starved = True
        if is_own or not self._other_irq:
            return None
        return self._other_irq(event, data)

    # --- the rest: in the app's own time

    def _handle_next(self):
        """One record of the ring; False if there is none."""
        record = self._ring.peek()
        if record is None:
            return False
        client = self._clients[record[1]]
        try:
            if record[0] == _ON_DATA:
                self.receiver.data(client.session, record[2:])
            else:
                client.take_fragment(record[2:])
        except MemoryError:
            client.is_starved = True
        finally:
            self._ring.drop()
        return True


class _Client:
    """A connection, and the link to it: see push_receiver.py."""

    def __init__(self, peripheral, index):
        self._peripheral = peripheral
        self._index = index
        self.peer = b""
        self.conn = None
        self.is_lost = False  # it has ended, and what came of it has not been looked at yet
        self.is_starved = False  # an event came for which there was no memory
        self.is_pairing = False
        self.is_over = False  # its messages are ignored from now on
        self.session = None
        self.mtu = _MIN_MTU
        self.left = self._pending = self._fragments = 0
        self._message = b""

    def connect(self, data):
        self.conn = data[0]
        self.mtu = _MIN_MTU
        self.left = _IDLE_MS
        self._pending = 0
        self.is_pairing = self.is_over = self.is_starved = False
        self.peer = b""
        self.peer = bytes(data[2])

    def take_event(self, event, data):
        """Nothing but the content of a write may take memory here."""
        peripheral = self._peripheral
        if event == _IRQ_GATTS_WRITE:
            is_data = data[1] == peripheral._data
            is_active = self._is_active()
            if self.is_over or (is_data and not is_active):
                return
            value = peripheral._ble.gatts_read(data[1])
            self._pending += len(value)
            if is_active or self._pending <= _MAX_PENDING:
                peripheral._ring.put(_ON_DATA if is_data else _ON_CONTROL, self._index, value)
        elif event == _IRQ_CENTRAL_DISCONNECT:
            self.conn = None
            self.is_lost = True
        elif event == _IRQ_MTU_EXCHANGED:
            self.mtu = min(data[1], peripheral._max_mtu)
        elif data[1] == _PASSKEY_DISPLAY:
            self.is_pairing = True

    def worth(self):
        """How long this client keeps its place if others want it, in ms."""
        if self.conn is None or self.is_over or self._is_active():
            return _PAIRING_MS
        return self.session.left if self.session else self.left

    def _is_active(self):
        return self.session is not None and self.session is self._peripheral.receiver.active

    def send_away(self):
        """End this connection: another client needs its place."""
        if self.session:
            self._peripheral.receiver.fail(self.session, busy())
        self.is_over = True
        self.left = min(self.left, _HANG_UP_MS)

    def poll(self, passed):
        if self.is_starved:
            self._give_up()
        if self.is_lost:
            if self.session:
                self._peripheral.receiver.lost(self.session)
            self.session = None
            self.is_lost = False
        if self.conn is None:
            return
        if self.is_pairing:
            self.is_pairing = False
            self.left = 0  # in case it cannot be shown
            self._show_passkey()
            self.left = _PAIRING_MS
        if self.session:
            return
        self.left -= passed
        if self.left <= 0 and (self.is_over or not self._peripheral._has_services):
            self.is_over = True
            self.left = _HANG_UP_MS  # then try again
            try:
                self._peripheral._ble.gap_disconnect(self.conn)
            except OSError:  # it is not connected any more
                pass

    def _show_passkey(self):
        passkey = self._peripheral._passkey
        if callable(passkey):
            show = passkey
            passkey = int.from_bytes(urandom(4), "little") % 1000000
            show(passkey)
        try:
            self._peripheral._ble.gap_passkey(self.conn, _PASSKEY_DISPLAY, passkey)
        except OSError:  # it has gone
            pass

    def _give_up(self):
        """End the session of a client that needs more memory than there is, and tell it so."""
        if self._open():
            self._peripheral.receiver.fail(self.session, MemoryError("allocating up to 512 bytes"))
        self.is_starved = False

    def _open(self):
        if not self.session and not self.is_over:
            self._fragments = 0
            self.session = self._peripheral.receiver.open(self)
            if not self.session:
                send_error(self, busy())
                self.close()
        return self.session

    def take_fragment(self, fragment):
        """Put a message together. A fragment that is not the next one ends it."""
        self._pending -= len(fragment)
        if self.is_over or not len(fragment) or not self._open():
            return
        number = fragment[0] & ~_MORE
        if number == 0:
            self._message = b""
        message = self._message + fragment[1:]
        if (number and number != self._fragments) or len(message) > MAX_MESSAGE:
            message = b""
        elif fragment[0] & _MORE:
            self._message = message
            self._fragments = number + 1
            return
        self._message = b""
        self._fragments = 0
        self._peripheral.receiver.message(self.session, memoryview(message))

    @property
    def packet_size(self):
        return min(self.mtu - _ATT_HEADER, _MAX_VALUE)

    @property
    def credit(self):
        return min(_MAX_CREDIT, _MAX_PACKETS * (self.packet_size - _OFFSET_SIZE))

    def send(self, message):
        room = self.packet_size - 1
        count = (len(message) + room - 1) // room
        for number in range(count):
            head = number if number == count - 1 else number | _MORE
            piece = message[number * room : (number + 1) * room]
            if not self._notify(bytes((head,)) + piece):
                return

    def _notify(self, fragment):
        """False if it cannot be sent: NimBLE has had no buffer for 0.3 s, or nobody is there."""
        peripheral = self._peripheral
        for _ in range(30):
            try:
                peripheral._ble.gatts_notify(self.conn, peripheral._control, fragment)
                return True
            except OSError as error:
                if error.errno != ENOMEM:
                    return False
            sleep_ms(10)
        return False

    def close(self):
        self.session = None
        self.is_over = True
        self.left = _HANG_UP_MS


class _Ring:
    """Records, for one that puts and one that takes: u16 size, u8 kind, u8 client, content.

    Each stands in one piece. What finds no room is lost.
    """

    def __init__(self, size):
        self._buf = bytearray(size)
        self._view = memoryview(self._buf)
        self._limit = size
        self._put = self._get = 0

    def put(self, kind, client, data):
        size = _RECORD_HEAD + len(data)
        at, first = self._put, self._get
        if at >= first:
            if at + size > self._limit:  # it does not fit behind the others: from the start again
                if size >= first:
                    return
                if at + 2 <= self._limit:
                    self._buf[at] = self._buf[at + 1] = 0
                at = 0
        elif at + size >= first:
            return
        buf = self._buf
        buf[at] = size & 0xFF
        buf[at + 1] = size >> 8
        buf[at + 2] = kind
        buf[at + 3] = client
        buf[at + _RECORD_HEAD : at + size] = data
        self._put = at + size  # last, since from now on the reader sees it

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
