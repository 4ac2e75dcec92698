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

    def mount(self, readonly, mkfs):
        self.names = None

    def umount(self):
        pass

    def stat(self, path):
        if path[-4:] == ".mpy":
            if not self.names:
                self.names = [name for name in os.listdir(_home) if name[-5:] == ".pack"]
                self.names.sort(key=("release.pack", "core.pack").count, reverse=True)
            entry = bytearray(20)
            for name in self.names:
                file = self.file = open(_home + "/" + name, "rb")
                while file.readinto(entry) == 20 and entry[0]:
                    if entry[:16].rstrip(b"\0") == path[1:-4].encode():
                        file.seek(int.from_bytes(entry[16:], "little") & 0x7FFFFFFF)
                        if entry[19] & 0x80:
                            from deflate import RAW, DeflateIO

                            self.file = DeflateIO(file, RAW, 9, True)
                        return (0x8000, 0, 0, 0, 0, 0, 0, 0, 0, 0)
                file.close()
        raise OSError(2)

    def open(self, path, mode):
        file, self.file = self.file, None
        return file


try:
    vfs.umount("/ota.pack")  # of a package that was imported before
except OSError:
    pass
vfs.mount(_Packs(), "/ota.pack")
__path__ = "/ota.pack"
