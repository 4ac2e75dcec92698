"""mpota: over-the-air updates for MicroPython on ESP32 boards, the desk side.

The command line is a thin layer over functions that take and return values:

    from pathlib import Path
    from mpota.bootloader.check import check_flash
    from mpota.edit.change import apply_to_file
    from mpota.edit.contents import extract
    from mpota.edit.resizing import resize
    from mpota.firmware.firmware import Firmware
    from mpota.firmware.layout import Edits
    from mpota.storage.file import write_file

    firmware = Firmware.open("firmware.bin")
    change = resize(firmware, Edits(flash_size=16 * 1024 * 1024, arrange="ota"))
    data = apply_to_file(firmware, change)
    resized = Firmware.from_bytes(data)
    print(resized.chip.title, resized.table["ota_0"].size, check_flash(resized.flash).boots)
    write_file(Path("resized.bin"), data)
    write_file(Path("app.bin"), extract(resized))

What is wrong with an input is a `mpota.errors.MpotaError`.
"""

from mpota.resources import version as _version

__version__ = _version()
