"""Whether this board has ever had more than plain images: asked at every boot and update, so tiny.

What is found is the business of boot.py (files that came with releases) and keys.py.
"""

HOME = "/.ota"

TRUST = ("trust", "trust-copy")  # in NVS: keys.py
# What NVS raises where there are none: ESP_ERR_NVS_NOT_INITIALIZED (no partition to use: nvs_open,
# as MicroPython uses one alone), _NOT_FOUND, _NOT_ENOUGH_SPACE (nvs_open finds no room for the
# namespace, so it is a new one), _PART_NOT_FOUND.
NO_TRUST = (-0x1101, -0x1102, -0x1105, -0x110F)


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

    for name in TRUST:
        try:
            NVS("ota").get_blob(name, bytearray(1))
        except OSError as error:
            if error.args[0] in NO_TRUST:
                continue
        return True
    return False
