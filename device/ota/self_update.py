"""Puts the package that came with a release in the place of /lib/ota (``mpota bundle --with-ota``).

Every step is one rename, and whatever a power cut leaves, `import ota` finds a whole package: that
in / comes before that in /lib. confirm.py calls this until it is done.
"""

import os
import sys

from .otadata import HOME

MARK = "/moving"  # a file in the package that takes the place of another


def finish(path):
    """``path``: where the running package stands, "/ota" or in a confirmed tree."""
    try:
        os.stat(path + MARK)
        if path != "/ota":
            os.rename(path, "/ota")
            _moved("/ota")
        try:
            os.stat("/lib/ota")
        except OSError:
            pass
        else:
            _set_aside("/lib/ota")
        os.rename("/ota", "/lib/ota")
        _moved("/lib/ota")
        os.remove("/lib/ota" + MARK)
    except OSError:  # it is somebody else's, or the next boot tries again
        pass


def _set_aside(path):
    """Move the former package to where confirm.sweep() removes it."""
    number = 0
    while True:
        try:
            os.rename(path, "%s/ota.old%d" % (HOME, number))
            return
        except OSError:
            number += 1  # what a cut has left of one before
            if number > 3:
                raise


def _moved(path):
    sys.modules[__name__.rpartition(".")[0]].__path__ = path
