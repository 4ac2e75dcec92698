"""The ``ota`` package as a part of a release: for boards that nobody can reach.

The tree of the release has it in lib/ota, with a mark, and in boot.py what lets go of the package
that has entered the tree, which may be any since 0.1. So the new one runs already while the release
is on trial. Once it has confirmed that, it takes the place of /lib/ota (device/ota/confirm.py).
"""

from __future__ import annotations

from collections.abc import Mapping

from mpota.errors import MpotaError
from mpota.formats.tar import Member
from mpota.mpy_cross import MpyFormat, can_compile
from mpota.release.ota_package import MARK, package

_FORMAT = MpyFormat(6, 3, None)  # without native code: MicroPython 1.20 and later load it
_FOLDER = "lib/ota"
_HAND_OVER = f"""\
# By mpota bundle --with-ota: from here on ota is the one that came with this release.
def _hand_over():
    import os, sys
    try:
        os.stat(sys.path[0] + "/{_FOLDER}/{MARK}")
    except OSError:
        return  # it has taken the place of /lib/ota
    for name in list(sys.modules):
        if name == "ota" or name.startswith("ota."):
            del sys.modules[name]
_hand_over()
"""


def with_ota(tree: Mapping[str, Member]) -> dict[str, Member]:
    """The members of a tree, by their names, and all parts of ``ota``.

    Raises MpotaError if the tree has one, or a boot.mpy, which nothing can be added to.
    """
    taken = next((name for name in ("boot.mpy", _FOLDER, "ota") if name in tree), None)
    if taken:
        raise MpotaError(f"--with-ota: the files have '{taken}' already")
    added = [Member(name, b"", is_directory=True) for name in ("lib", _FOLDER)]
    files = package(_FORMAT, can_compile(_FORMAT)) | {MARK: b""}
    added += [Member(f"{_FOLDER}/{name}", data) for name, data in files.items()]
    boot = tree["boot.py"].data if "boot.py" in tree else b""
    added.append(Member("boot.py", _HAND_OVER.encode() + boot))
    return {**tree, **{member.name: member for member in added}}
