"""Every form of an update, with the heap of a small board, sizes next to it, and one with PSRAM."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
from mpota.firmware.sample import build_firmware
from mpota.formats.delta import make_delta
from mpota.formats.frames import compress
from mpota.units import KiB, MiB
from mpota.virtual.board import Board
from mpota.virtual.flash import VirtualFlash

from tests.support import encoded, ota_board, ota_package, releases, web
from tests.support.encoded import NEW, OLD, content

PSRAM = 4 * MiB
FILE = """
import ota
ota.update.from_file({url!r}, verbose=False, reboot=False, max_failures=5, pause=0.01)
print("done")
"""
RELEASE = """
import ota
ota.release.install({url!r}, reboot=False, max_failures=5, pause=0.01)
print("done")
"""
TRUST = "import ota; ota.keys.add({digest!r})"


def signed(app: releases.Content) -> bytes:
    """A release with files, as those of a small board have to fit as well."""
    tree = releases.tree("2", releases.MAIN)
    return releases.make(app, tree, keys=(releases.key(),), counter=1).to_bytes()


# From which heap on it has to go through, in KiB; script; file.
FORMS: dict[str, tuple[int, str, Callable[[], bytes]]] = {
    "app": (64, FILE, lambda: NEW),
    "merged": (64, FILE, lambda: build_firmware("esp32", app=NEW)),
    "compressed": (84, FILE, lambda: compress(NEW).to_bytes()),
    "delta": (92, FILE, lambda: make_delta(OLD, NEW).to_bytes()),
    "signed": (92, RELEASE, lambda: signed(content())),
    "signed, compressed": (96, RELEASE, lambda: signed(content().compressed())),
    "signed, delta": (96, RELEASE, lambda: signed(content().compressed().with_delta(OLD))),
}


@functools.cache
def file_of(form: str) -> bytes:
    return FORMS[form][2]()


@functools.cache
def trusting() -> bytes:
    """The flash of a board that trusts a key."""
    with ota_board.updating_board(encoded.base()) as board:
        ota_board.output(board, TRUST.format(digest=releases.key().public.digest.hex()))
        return board.flash.snapshot()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Some sizes from the least on: what succeeds by chance fails at another one."""
    above = range(0, 65) if metafunc.config.getoption("--all-cuts") else (0, 5, 11, 18, 44)
    rows = [
        (form, size)
        for form, (least, _, _) in FORMS.items()
        for size in (*((least + more) * KiB for more in above), PSRAM)
    ]
    ids = [f"{form}-{size // KiB}" for form, size in rows]
    metafunc.parametrize(("form", "heap_size"), rows, ids=ids)


def test_any_form_is_installed_whatever_the_heap(form: str, heap_size: int) -> None:
    _, script, _ = FORMS[form]
    data = file_of(form)
    start = trusting() if script is RELEASE else encoded.base()
    with (
        web.serving({"/file": web.File(data, '"one"')}) as server,
        VirtualFlash.create(len(start), {0: start}) as flash,
    ):
        server.troubles = [web.drop(len(data) // 2), None]
        board = Board(flash, heap_size=heap_size, frozen=ota_package.compiled())
        assert ota_board.output(board, script.format(url=server.url("/file"))) == "done\n"
        assert len(server.requests) >= 2  # it broke in the middle
        assert encoded.slot(board, len(NEW)) == NEW
        board.heap_size = PSRAM
        run = board.run()
        assert run.labels == ("ota_1",), run.console
        assert (script is RELEASE) == ("runs v1.27.0 2 " in run.output)
