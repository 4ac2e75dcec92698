"""Whether this board has ever had more than plain images: asked at every boot and update, so tiny.

What is found is the business of boot.py (files that came with releases) and keys.py.
"""

from micropython import const

HOME = "/.ota"

_NOT_FOUND = const(-0x1102)  # ESP_ERR_NVS_NOT_FOUND
_NO_NVS = const(-0x110F)  # ESP_ERR_NVS_PART_NOT_FOUND


def has_home():
    """Whether a release has ever been installed."""
    from os import stat

    try:
        stat(HOME)
        return True
    except OSError:
        return False


def has_trust():
    """Whether keys or a counter are stored. What cannot be read counts as stored."""
    from esp32 import NVS

    try:
        NVS("ota").get_blob("trust", bytearray(1))
    except OSError as error:
        return error.args[0] not in (_NOT_FOUND, _NO_NVS)
    return True
