"""Over-the-air updates for MicroPython on ESP32 boards.

``import ota`` loads nothing else: ``ota.update``, ``ota.rollback``, ``ota.release``, ``ota.keys``,
``ota.status`` and ``ota.OTAError`` load when they are first used. ``ota.parts()`` tells which parts
of the package are installed.
"""

import os

__version__ = "0.2.0"

if __path__ == "ota":  # found by "" in sys.path: keep it when the current directory changes
    __path__ = (os.getcwd() + "/ota").replace("//", "/")
_home = __path__  # the directory of this package


def __getattr__(name):
    if name == "OTAError":
        from .base import OTAError

        return OTAError
    if name == "parts":
        from .status import parts

        return parts
    try:
        __import__(__name__ + "." + name)  # leaves the module in this one's globals
    except ImportError as error:
        from .status import missing

        found = missing(error)
        if found is error and name in str(error):  # the module lacks, not one that it imports
            raise AttributeError(name)
        raise found
    return globals()[name]
