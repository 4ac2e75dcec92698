# What programs use of a chip beside its flash, for rehearsals: pins, buses, sensors. It takes all
# that is done to it and answers with zeros; what is connected to a pin is not modelled. `machine`
# has these by name, the modules that firmware for boards has built in are made of it.

import sys
import time

import machine


class _Device:
    def __init__(self, *args, **options):
        pass

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _answer

    def __call__(self, *args):
        return 0

    def __len__(self):
        return 0

    def __getitem__(self, at):
        return 0

    def __setitem__(self, at, value):
        pass


def _answer(*args, **options):
    return 0


class Pin(_Device):
    IN, OUT, OPEN_DRAIN, PULL_UP, PULL_DOWN = 1, 3, 7, 2, 1
    IRQ_RISING, IRQ_FALLING, WAKE_LOW, WAKE_HIGH = 1, 2, 4, 5
    DRIVE_0, DRIVE_1, DRIVE_2, DRIVE_3 = range(4)
    _value = 0

    def __init__(self, id, mode=-1, pull=-1, *, value=None, drive=0, hold=None):
        self._value = value or 0

    def __call__(self, value=None):
        return self.value(value)

    def value(self, value=None):
        if value is None:
            return self._value
        self._value = int(bool(value))
        return None

    def on(self):
        self._value = 1

    def off(self):
        self._value = 0

    def toggle(self):
        self._value ^= 1


class Signal(Pin):
    def __init__(self, pin, *args, invert=False):
        pass


class ADC(_Device):
    ATTN_0DB, ATTN_2_5DB, ATTN_6DB, ATTN_11DB = range(4)
    WIDTH_9BIT, WIDTH_10BIT, WIDTH_11BIT, WIDTH_12BIT = range(9, 13)


class _Bus(_Device):
    # Nothing answers on it.
    MSB, LSB, CONTROLLER = 0, 1, 0

    def scan(self):
        return []

    def readfrom(self, address, count, stop=True):
        return bytes(count)

    def readfrom_mem(self, address, at, count, addrsize=8):
        return bytes(count)

    def read(self, count=0, write=0):
        return bytes(count)


class UART(_Device):
    INV_TX, INV_RX, RTS, CTS = 1, 2, 1, 2
    IRQ_RX, IRQ_RXIDLE, IRQ_BREAK = 1, 2, 4

    def any(self):
        return 0

    def read(self, count=-1):
        return None

    readline = readinto = read

    def write(self, data):
        return len(data)


class RTC(machine.RTC):
    def datetime(self, value=None):
        now = time.gmtime()
        return (now[0], now[1], now[2], now[6], now[3], now[4], now[5], 0)


class I2S(_Device):
    RX, TX, STEREO, MONO = 0, 1, 0, 1


class TouchPad(_Device):
    pass


I2C = SoftI2C = SPI = SoftSPI = _Bus
PWM = DAC = SDCard = Counter = Encoder = _Device


def bitstream(*args):
    pass


def time_pulse_us(*args):
    return -1


PIN_WAKE, EXT0_WAKE, EXT1_WAKE, TIMER_WAKE, TOUCHPAD_WAKE, ULP_WAKE = 2, 2, 3, 4, 5, 6


def wake_reason():
    return 0


class _Module:
    pass


def _module(name, **content):
    made = _Module()
    made.__name__ = name
    for key, value in content.items():
        setattr(made, key, value)
    sys.modules[name] = made


class NeoPixel(_Device):
    def __init__(self, pin, n, bpp=3, timing=1):
        self.n = n
        self._pixels = [(0,) * bpp] * n

    def __len__(self):
        return self.n

    def __getitem__(self, at):
        return self._pixels[at]

    def __setitem__(self, at, color):
        self._pixels[at] = color

    def fill(self, color):
        self._pixels = [color] * self.n

    def write(self):
        pass


class _Scanned(_Device):
    def scan(self):
        return []

    def temperature(self):
        return 20

    def humidity(self):
        return 50


def set_up():
    import esp32

    machine.RTC = RTC
    for name in ("RMT", "PCNT", "ULP"):
        setattr(esp32, name, _Device)
    for name in (
        "wake_on_ext0",
        "wake_on_ext1",
        "wake_on_touch",
        "wake_on_gpio",
        "gpio_deep_sleep_hold",
    ):
        setattr(esp32, name, _answer)
    _module("neopixel", NeoPixel=NeoPixel)
    _module("dht", DHT11=_Scanned, DHT22=_Scanned)
    _module("onewire", OneWire=_Scanned, OneWireError=OSError)
    _module("ds18x20", DS18X20=_Scanned)
    _module("espnow", ESPNow=_Device)
    _module("ntptime", settime=_answer, time=_answer, host="pool.ntp.org")
    _module("webrepl", start=_answer, stop=_answer)
