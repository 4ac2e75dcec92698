# Stand-in for MicroPython's `machine` module on ESP32: resets, the watchdog, timers.

import _thread
import time

import link
import micropython
from micropython import const

PWRON_RESET = const(1)
HARD_RESET = const(2)
WDT_RESET = const(3)
DEEPSLEEP_RESET = const(4)
SOFT_RESET = const(5)

# Set by boot_app.py.
_reset_cause = PWRON_RESET
_RTC_SIZE = const(2048)
_unique_id = bytes(6)
_freq = 160000000


def reset():
    link.call(link.RESET, HARD_RESET)


def soft_reset():
    link.call(link.RESET, SOFT_RESET)


def deepsleep(time_ms=0):
    # The board wakes up at once: nothing here waits for the sake of waiting.
    link.call(link.RESET, DEEPSLEEP_RESET)


def lightsleep(time_ms=0):
    pass


def reset_cause():
    return _reset_cause


def unique_id():
    return _unique_id


def freq(hz=None):
    global _freq
    if hz is None:
        return _freq
    if hz not in (20000000, 40000000, 80000000, 160000000, 240000000):
        raise ValueError("frequency must be 20MHz, 40MHz, 80Mhz, 160MHz or 240MHz")
    _freq = hz
    return None


def idle():
    time.sleep_ms(1)


def disable_irq():
    return True


def enable_irq(state=True):
    pass


class RTC:
    # ports/esp32/machine_rtc.c: memory that keeps what is in it as long as there is power.
    def __init__(self, id=0):
        pass

    def memory(self, data=None):
        if data is None:
            return link.fetch(link.RTC_MEMORY)[1]
        data = bytes(data)
        if len(data) > _RTC_SIZE:
            raise ValueError("buffer too long")
        link.call(link.RTC_MEMORY, 1, data)
        return None

    def datetime(self):
        year, month, day, hour, minute, second, weekday = time.gmtime()[:7]
        return year, month, day, weekday, hour, minute, second, 0


class WDT:
    # ports/esp32/machine_wdt.c: one watchdog, which nothing stops once it runs. The host process
    # keeps its time, so that it bites whatever the code here does.
    _timeout = 0

    def __init__(self, id=0, timeout=5000):
        if id != 0:
            raise ValueError
        if timeout <= 0:
            raise ValueError("WDT timeout too short")
        WDT._timeout = timeout
        self.feed()

    def feed(self):
        link.call(link.WATCHDOG, WDT._timeout)


class Timer:
    # Callbacks run between two bytecodes of the main thread, as on a board.
    ONE_SHOT = const(0)
    PERIODIC = const(1)

    _running = set()  # keeps them alive, as the chip does

    def __init__(self, id, **options):
        self._run = 0  # counts up: the thread of a former init() sees that it is not wanted
        if options:
            self.init(**options)

    def init(self, mode=PERIODIC, callback=None, period=-1, freq=0):
        self.deinit()
        self._callback = callback
        self._period = period if freq == 0 else 1000 // freq
        self._is_periodic = mode == Timer.PERIODIC
        Timer._running.add(self)
        _thread.start_new_thread(self._wait, (self._run,))

    def deinit(self):
        self._run += 1
        Timer._running.discard(self)

    def _wait(self, run):
        link.mask_thread()
        is_first = True
        while is_first or self._is_periodic:
            is_first = False
            time.sleep_ms(self._period)
            if run != self._run:
                return
            self._schedule(run)

    def _schedule(self, run):
        try:
            micropython.schedule(self._fire, run)
        except RuntimeError:  # the queue is full: like a board's, this tick is lost
            pass

    def _fire(self, run):
        if run != self._run:
            return
        if link.is_busy():  # a request is under way, which in C could not be interrupted
            self._schedule(run)
            return
        if not self._is_periodic:
            Timer._running.discard(self)
        if self._callback:
            self._callback(self)


def __getattr__(name):
    # What programs drive with it: there for rehearsals, hardware.py.
    import sys

    hardware = sys.modules.get("hardware")
    if hardware is None:
        raise AttributeError(name)
    return getattr(hardware, name)
