# `time` for programs whose sleep takes no time: the clock goes on by it at once, and the
# watchdog with it. Timers and what waits for a socket go by the real one.

import sys
import time

import link

_SLEEP = ord("Z")  # argument: milliseconds. Here, as each name in link.py costs each board's heap
_least = 0  # ms: who sleeps less waits
_ahead = 0  # ms


class _Time:
    # Its functions are put into it: a method cannot be imported by its name.
    def __getattr__(self, name):
        return getattr(time, name)


def sleep_ms(duration):
    global _ahead
    if duration < _least:
        time.sleep_ms(duration)
        return
    _ahead += duration
    link.call(_SLEEP, duration)


def set_up(least):
    global _least
    _least = least
    posing = _Time()
    posing.sleep_ms = sleep_ms
    posing.sleep = lambda duration: sleep_ms(int(duration * 1000))
    posing.ticks_ms = lambda: time.ticks_add(time.ticks_ms(), _ahead)
    posing.ticks_us = lambda: time.ticks_add(time.ticks_us(), _ahead * 1000)
    posing.time = lambda: time.time() + _ahead // 1000
    sys.modules["time"] = posing
