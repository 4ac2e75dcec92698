"""Lets go of modules that have done their work: the heap has room for a larger block then."""

import gc
import sys


def unload(*names):
    """Forget modules of this package; they are loaded again where they are imported again."""
    package = __name__.rpartition(".")[0]
    attributes = sys.modules[package].__dict__
    for name in names:
        sys.modules.pop(package + "." + name, None)
        attributes.pop(name, None)
    gc.collect()
