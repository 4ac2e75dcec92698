"""The switch to a new app. Loaded when all buffers are gone."""

import struct

from micropython import const

from . import otadata
from .errors import StateError

_VALIDATE_FAILED = const(-5379)  # ESP_ERR_OTA_VALIDATE_FAILED


def set_boot(part, digest):
    """Make ``part`` the next to boot. Raises StateError if ESP-IDF does not accept its image.

    Before that is noted in NVS what is to boot next: the u32 flash offset of its slot, and its
    digest. rollback.cancel() looks at it in the boots that follow (failed_version.py: settle). A
    power cut can lose it, and that of an earlier update: then one that failed may be tried again.
    """
    if digest:
        otadata.note("trial", struct.pack("<I", part.info()[2]) + digest)
    try:
        part.set_boot()
    except OSError as error:
        if error.args[0] != _VALIDATE_FAILED:
            raise StateError("otadata", "otadata cannot be written: %s" % error)
        raise StateError(
            "not-bootable",
            "ESP-IDF does not accept the image in %s (checksum, or a chip revision that it is "
            "not made for)" % part.info()[4],
        )
