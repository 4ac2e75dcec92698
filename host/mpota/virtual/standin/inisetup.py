# First boot: makes the file system, as ports/esp32/modules/inisetup.py does.

import time

import vfs
from flashbdev import bdev

_BOOT_PY = """\
# This file is executed on every boot (including wake-boot from deepsleep)
#import esp
#esp.osdebug(None)
#import webrepl
#webrepl.start()
"""


def setup():
    first = bytearray(bdev.ioctl(5, 0))
    bdev.readblocks(0, first)
    while any(byte != 0xFF for byte in first):
        print("The filesystem appears to be corrupted.")
        time.sleep(3)
    print("Performing initial setup")
    kind = vfs.VfsLfs2 if bdev.info()[4] == "vfs" else vfs.VfsFat
    kind.mkfs(bdev)
    vfs.mount(kind(bdev), "/")
    with open("boot.py", "w") as f:
        f.write(_BOOT_PY)
