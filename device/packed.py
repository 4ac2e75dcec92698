# Appended to ota/__init__.py where the package is compiled: host/mpota/release/ota_package.py.
#
# A file of littlefs takes 4 KiB at least, and to import one looks four names up, which reads the
# flash some 200 times. So the modules of a part are in one file, and a file system that is just
# enough for `import` finds them there.

import os

import vfs


class _Packs:
    """The modules of this package, in files NAME.pack, as a file system to import them from.

    A pack has for each module 16 bytes of its name and 4 of where it begins, then 20 zeros; the
    modules follow. Where the highest bit of the four is set, it is deflated: raw, with a window of
    512 bytes.
    """

    names = file = None

    def mount(self, readonly, mkfs):
        pass

    def umount(self):
        pass

    def stat(self, path):
        if path[-4:] != ".mpy":
            raise OSError(2)
        if not self.names:
            self.names = [name for name in os.listdir(_home) if name[-5:] == ".pack"]
            self.names.sort(key=("release.pack", "core.pack").count, reverse=True)
        wanted = path[1:-4].encode()
        entry = bytearray(20)
        for name in self.names:
            self.file = open(_home + "/" + name, "rb")
            while self.file.readinto(entry) == 20 and entry[0]:
                if entry[:16].rstrip(b"\0") == wanted:
                    self.is_deflated = entry[19] & 0x80
                    entry[19] &= 0x7F
                    self.file.seek(int.from_bytes(entry[16:], "little"))
                    return (0x8000, 0, 0, 0, 0, 0, 0, 0, 0, 0)
            self.file.close()
        raise OSError(2)

    def open(self, path, mode):
        if not self.is_deflated:
            return self.file
        from deflate import RAW, DeflateIO

        return DeflateIO(self.file, RAW, 9, True)


_PACKS = "/ota.pack"
try:
    vfs.umount(_PACKS)  # of a package that was imported before
except OSError:
    pass
vfs.mount(_Packs(), _PACKS)
__path__ = _PACKS
