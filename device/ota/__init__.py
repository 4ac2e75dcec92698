"""Over-the-air updates for MicroPython on ESP32 boards.

``import ota`` loads nothing else: ``ota.update``, ``ota.release``, ``ota.rollback``, ``ota.keys``,
``ota.status`` and ``ota.OTAError`` load when they are first used.
"""


def __getattr__(name):
    if name == "OTAError":
        from .errors import OTAError

        return OTAError
    try:
        __import__(__name__ + "." + name)  # leaves the module in this one's globals
    except ImportError as error:
        if name in str(error):  # not: one of its own imports
            raise AttributeError(name)
        raise
    return globals()[name]
