# Stand-in for MicroPython's `network` module: a station that is connected. Sockets are the real
# ones of the machine that runs the virtual board.

STA_IF = 0
AP_IF = 1
STAT_IDLE = 1000
STAT_GOT_IP = 1010

_name = "mpy-esp32"


def hostname(name=None):
    global _name
    if name is None:
        return _name
    _name = name


def country(code=None):
    return "XX"


class WLAN:
    IF_STA = STA_IF
    IF_AP = AP_IF

    def __init__(self, interface=STA_IF):
        self._interface = interface
        self._is_active = False

    def active(self, is_active=None):
        if is_active is None:
            return self._is_active
        self._is_active = is_active
        return None

    def connect(self, ssid=None, key=None, **options):
        pass

    def disconnect(self):
        pass

    def isconnected(self):
        return self._interface == STA_IF and self._is_active

    def status(self, what=None):
        if what == "rssi":
            return -50
        return STAT_GOT_IP if self.isconnected() else STAT_IDLE

    def config(self, *names, **values):
        return b"\x02\0\0\0\0\x01" if names == ("mac",) else None

    def ifconfig(self):
        return ("127.0.0.1", "255.0.0.0", "127.0.0.1", "127.0.0.1")

    def scan(self):
        return []
