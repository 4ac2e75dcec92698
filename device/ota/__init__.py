"""Over-the-air updates for MicroPython on ESP32 boards.

``import ota`` loads nothing else: ``ota.update``, ``ota.release``, ``ota.rollback``, ``ota.keys``,
``ota.status`` and ``ota.OTAError`` load when they are first used.
"""


def __getattr__(name):
    if name in (
        "boot", "confirm", "errors", "files", "image", "keys", "otadata", "release", "rollback",
        "signature", "slot", "source", "status", "update",
    ):
        __import__(__name__ + "." + name)  # leaves the module in this one's globals
        return globals()[name]
    if name == "OTAError":
        from .errors import OTAError

        return OTAError
    raise AttributeError(name)
