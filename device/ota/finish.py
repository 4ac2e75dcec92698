"""The end of an update: the last checks, and the switch. Loaded when the buffers are gone."""

import struct

from esp32 import NVS, Partition
from micropython import const

from .errors import ImageError, StateError

_VALIDATE_FAILED = const(-5379)  # ESP_ERR_OTA_VALIDATE_FAILED


def check_file(size, expected_size, sha, expected_sha):
    """Raises ImageError if the file is not the one that was expected, as far as that is known."""
    if expected_size not in (None, size):
        raise ImageError("length", "Received %d bytes (expect %d)." % (size, expected_size))
    if sha and sha.hex() != expected_sha:
        raise ImageError("sha", "SHA mismatch recv=%s expect=%s." % (sha.hex(), expected_sha))


def check_image(part, image, sha, failed, trust):
    """Raises OTAError if the image in ``part`` is damaged, has failed before or is not trusted.

    ``sha``: SHA-256 over what was read back, up to the digest that the image carries. ``failed``
    and ``trust`` may be None.
    """
    if image.digest:
        digest = sha.digest()
        if digest != image.digest:
            raise ImageError(
                "digest",
                "the image is damaged: its SHA-256 is %s, it carries %s"
                % (digest.hex(), image.digest.hex()),
            )
        if failed:
            failed.check_digest(digest)
    if trust and trust.trusted:
        from .signature import check_app

        check_app(part, image.size, trust.trusted, trust.retired)


def set_boot(part, digest):
    """Make ``part`` the next to boot. Raises StateError if ESP-IDF does not accept its image."""
    if digest:
        put_on_trial(part, digest)
    try:
        part.set_boot()
    except OSError as error:
        if error.errno != _VALIDATE_FAILED:
            raise
        raise StateError(
            "not-bootable",
            "ESP-IDF does not accept the image in %s (checksum, or a chip revision that it is "
            "not made for)" % part.info()[4],
        )


def put_on_trial(part, digest):
    """Note in NVS what is to boot next: the u32 flash offset of its slot, and its digest.

    rollback.cancel() looks at it in the boots that follow (failed.py: settle). A power cut can
    lose it (keys.py), and that of an earlier update: then one that failed may be tried once more.
    """
    try:
        nvs = NVS("ota")
        nvs.set_blob("trial", struct.pack("<I", part.info()[2]) + digest)
        nvs.commit()
    except OSError:
        pass  # a table without nvs, or a full one: otadata alone has to remember a failure


def tell(part):
    """Say what has been done, as micropython-esp32-ota does."""
    print("OTA Partition '%s' updated successfully." % part.info()[4])
    boot = Partition(Partition.BOOT).info()[4]
    print("Micropython will boot from '%s' partition on next boot." % boot)
    print("Remember to call ota.rollback.cancel() after successful reboot.")
