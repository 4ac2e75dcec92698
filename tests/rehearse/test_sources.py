"""Whatever a board takes can be rehearsed, on whatever there is of a board."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from mpota.errors import MpotaError, UsageError
from mpota.firmware import sample
from mpota.flashing.backup import Backup
from mpota.flashing.plan import Step
from mpota.formats.chips import chip_by_name
from mpota.formats.partition_table import PartitionTable
from mpota.rehearse import subject
from mpota.rehearse.offer import CHANNEL, RELEASE, Offer, open_offer
from mpota.release.build import Contents, publish
from mpota.virtual.board import Board
from mpota.virtual.cable import plugged_in
from mpota.virtual.flash import VirtualFlash

from tests.support import boards, firmware_files, published, rehearsals, releases, web
from tests.support.firmware_files import run
from tests.support.rehearsals import played

TRUST = f"import ota; ota.keys.add({releases.key().public.digest.hex()!r})"


def is_good(offer: Offer, way: str = "http", parts: tuple[str, ...] = ("release",)) -> bool:
    with played(rehearsals.board(TRUST, parts=parts), offer, way) as found:
        assert found.findings == []
        outcomes = found.cut(1)
        return [one for one in outcomes if one.verdict.findings] == []


def manifest_directory(directory: Path) -> Path:
    contents = Contents((releases.app(), releases.tree("2")), "esp32")
    payloads = tuple(content.payload(as_url=True) for content in contents.contents)
    manifest = replace(releases.manifest(counter=2), payloads=payloads)
    publish(directory, manifest, contents, (releases.key(),))
    return directory


def test_a_manifest_in_its_directory_and_by_its_url(tmp_path: Path) -> None:
    site = manifest_directory(tmp_path / "site")
    offer = open_offer(str(site))
    assert (offer.kind, offer.is_signed) == (RELEASE, True)
    assert is_good(offer)
    with web.serving() as server:
        for path in site.iterdir():
            server.files[f"/{path.name}"] = web.File(path.read_bytes())
        fetched = open_offer(server.url("/manifest.json"))
    assert fetched.files == offer.files


def test_a_channel_as_it_is_published(tmp_path: Path) -> None:
    published.write_keys(tmp_path)
    bundle = published.write_bundle(tmp_path / "pump.bundle", "2.0", 2)
    target = tmp_path / "site"
    done = published.mpota("publish", bundle, target, "--key", tmp_path / "key.pem")
    assert done, done.error
    offer = open_offer(str(target))
    assert (offer.kind, offer.version) == (CHANNEL, "pump 2.0")
    assert is_good(offer, "channel", ("channel",))


def test_a_release_that_a_hawkbit_server_assigns(tmp_path: Path) -> None:
    made = releases.make(releases.app(), releases.tree("2"), keys=(releases.key(),), counter=2)
    assert is_good(rehearsals.bundle_offer(tmp_path, made), "ddi", ("ddi",))


def test_a_backup_of_a_board(tmp_path: Path) -> None:
    content = rehearsals.board().content
    flash = Step("flash", 0x8000, content[0x8000:], content[0x8000:])
    path = tmp_path / "backup.zip"
    Backup("esp32", "240ac4c0ffee", len(content), 0x8000, "resize", (flash,), ()).save(path)
    found = subject.from_file(path)
    assert found.content[0x8000:] == content[0x8000:]
    assert found.notes == ("the backup has no bootloader: one that is made up stands in",)
    with played(found, rehearsals.app_offer(tmp_path)) as made:
        assert made.findings == []


def test_a_board_on_a_port_of_which_only_what_is_used_is_read(tmp_path: Path) -> None:
    (tmp_path / "new.bin").write_bytes(boards.app("v1.27.0", 0x27000))
    content = rehearsals.board().content
    with VirtualFlash.create(len(content), {0: content}) as flash:
        with plugged_in(Board(flash), chip_by_name("esp32")) as ports:
            done = run("rehearse", tmp_path / "new.bin", "--board", ports.loader,
                       "--cuts", 0, "--breaks", 0)  # fmt: skip
        assert (done.code, done.err) == (0, ""), done.out
        assert "ota_1 v1.27.0" in done.out
        assert flash.snapshot() == content


def test_a_board_whose_app_is_marked_encrypted_is_told_what_can_be_done(tmp_path: Path) -> None:
    marked = [replace(p, flags=1) if p.is_app else p for p in firmware_files.OTA_TABLE]
    data = sample.build_firmware(
        "esp32", table=PartitionTable(tuple(marked)), app=firmware_files.small_app(), is_dump=True
    )
    with pytest.raises(MpotaError, match="marked encrypted") as refused:
        subject.from_file(write(tmp_path / "dump.bin", data))
    assert "--board FIRMWARE.bin" in str(refused.value.hint)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_what_is_no_release_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no manifest\.json and no channel"):
        open_offer(str(tmp_path))
    (tmp_path / "manifest.json").write_text('{"format": 9}')
    with pytest.raises(MpotaError):
        open_offer(str(tmp_path))
    with pytest.raises(MpotaError, match="is a web page"):
        open_offer(str(write(tmp_path / "new.bin", b"<html>not found</html>")))
