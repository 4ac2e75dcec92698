"""`mpota rehearse` finds what would go wrong: each of these is planted."""

from __future__ import annotations

from pathlib import Path

from mpota.firmware import sample
from mpota.formats.delta import make_delta
from mpota.release.build import sign_app

from tests.support import boards, ota_files, rehearsals, releases
from tests.support.rehearsals import CONFIRM, app_offer, bundle_offer, played

KEY = releases.key()
TRUST = f"import ota; ota.keys.add({KEY.public.digest.hex()!r})"


def only(found: list[str], words: str) -> None:
    """One finding, which says so."""
    assert len(found) == 1, found
    assert words in found[0]


def test_a_release_too_large_by_one_sector(tmp_path: Path) -> None:
    large = boards.app("v1.27.0", boards.SLOT_SIZE + 4096)
    with played(rehearsals.board(), app_offer(tmp_path, large)) as found:
        only(found.findings, "the board refuses it: too-long")


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    files = releases.tree("2", page="x" * 0x140000)
    offer = bundle_offer(tmp_path, releases.make(releases.app(), files))
    with played(rehearsals.board(), offer) as found:
        only(found.findings, "the board refuses it: disk-full")


def test_an_app_without_the_signature_that_the_board_wants(tmp_path: Path) -> None:
    with played(rehearsals.board(TRUST), app_offer(tmp_path)) as found:
        only(found.findings, "the board refuses it: unsigned")


def test_a_counter_too_low(tmp_path: Path) -> None:
    has_had = "import ota; t = ota.keys.load(); t.counter = 9; t.save()"
    signed = releases.make(releases.app(), keys=(KEY,), counter=8)
    with played(rehearsals.board(TRUST, has_had), bundle_offer(tmp_path, signed)) as found:
        only(found.findings, "counter 8, this board has had 9")


def test_a_main_that_never_confirms(tmp_path: Path) -> None:
    forgets = releases.tree("2", "import time\nwhile True:\n    time.sleep_ms(50)\n")
    offer = bundle_offer(tmp_path, releases.make(releases.app(), forgets))
    with played(rehearsals.board(), offer) as found:
        only(found.findings, "nothing confirms it within 2 s")


def test_a_confirmation_that_needs_a_file_which_the_release_does_not_bring(tmp_path: Path) -> None:
    broken = releases.tree("2", "import sensors\n" + CONFIRM.decode())
    offer = bundle_offer(tmp_path, releases.make(releases.app(), broken))
    with played(rehearsals.board(), offer) as found:
        only(found.findings, "no module named 'sensors' (main.py, line 1)")


def test_a_health_check_that_fails(tmp_path: Path) -> None:
    with played(rehearsals.board(), app_offer(tmp_path), check="1 + 1 == 3") as found:
        only(found.findings, "the health check fails: AssertionError")


def test_a_delta_for_another_base(tmp_path: Path) -> None:
    old, new = (sample.build_app("esp32", version=v, size=0x18000) for v in ("v1.24.0", "v1.27.0"))
    with played(rehearsals.board(), app_offer(tmp_path, make_delta(old, new).to_bytes())) as found:
        only(found.findings, "the board refuses it: base")


def test_what_ota_0_1_leaves_of_an_image_that_it_refuses(tmp_path: Path) -> None:
    by_another = sign_app(boards.app("v1.27.0", 0x27000), "new.bin", (releases.key(1),))
    offer = app_offer(tmp_path, by_another)
    with played(rehearsals.board(TRUST), offer) as found:
        only(found.findings, "the board refuses it")
    with played(rehearsals.board(TRUST, package=ota_files.old_files()), offer) as found:
        assert "stays in ota_1, whole" in found.findings[1], found.findings
