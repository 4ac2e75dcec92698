"""What `mpota demo` plays with: firmware files, a server that has them, a flash."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mpota.edit.contents import extract
from mpota.firmware import sample
from mpota.firmware.firmware import Firmware
from mpota.formats.app_desc import find_micropython
from mpota.formats.chips import CHIPS
from mpota.units import KiB
from mpota.virtual.flash import VirtualFlash

GOOD, BROKEN, TRUNCATED, OTHER_CHIP = "good.bin", "broken.bin", "truncated.bin", "other-chip.bin"


def update_files(firmware: Firmware) -> dict[str, bytes]:
    """App images by their names, made of the app in ``firmware``: each is a version of its own."""
    good = sample.next_version(extract(firmware))
    return {
        GOOD: good,
        BROKEN: sample.next_version(good),
        TRUNCATED: good[: len(good) // 2],
        OTHER_CHIP: _other_chip(firmware),
    }


def version_of(app: bytes) -> str:
    """As the board's ``os.uname().release`` has it."""
    return (find_micropython(app).version or "").removeprefix("v").partition("-")[0]


def flash_with(firmware: Firmware) -> VirtualFlash:
    flash = firmware.flash
    contents = {flash.base: flash.read(flash.base, flash.end - flash.base)}
    return VirtualFlash.create(firmware.flash_size, contents)


@contextmanager
def served(files: dict[str, bytes]) -> Iterator[str]:
    """An HTTP server on loopback; yields its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = files.get(self.path.lstrip("/"))
            if data is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _other_chip(firmware: Firmware) -> bytes:
    other = next(c for c in CHIPS if c.chip_id != firmware.chip.chip_id)
    return sample.build_app(other.name, size=128 * KiB)
