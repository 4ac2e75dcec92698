"""Pages of `mpota web` and `mpota ble web`: what is written, and what is refused before it is."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from mpota.firmware.sample import build_firmware
from mpota.formats.partition_table import Partition, PartitionTable

from tests.support.firmware_files import (
    NVS,
    OTA_TABLE,
    TABLE,
    Run,
    assert_refused,
    run,
    small_app,
    small_firmware,
)

NAMED = ("--name", "Greenhouse", "--version", "1.2.0")


@pytest.fixture(name="script")
def _script(tmp_path: Path) -> Path:
    """What stands for ESP Web Tools, as it is unpacked."""
    web = tmp_path / "package" / "dist" / "web"
    web.mkdir(parents=True)
    (web / "install-button.js").write_text("import './other.js'")
    (web / "other.js").write_text("1")
    (tmp_path / "package" / "LICENSE").write_text("Apache-2.0")
    return tmp_path / "package"


def save(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def web(tmp_path: Path, script: Path, *args: object) -> Run:
    return run("web", *args, "-o", tmp_path / "site", *NAMED, "--esp-web-tools", script)


def test_the_manifest_names_parts_at_each_chips_offsets_and_what_esphome_wants(
    tmp_path: Path, script: Path
) -> None:
    files = [
        save(tmp_path / f"{chip}.bin", small_firmware(chip, OTA_TABLE))
        for chip in ("esp32", "esp32c5", "esp32c6")
    ]
    more = ("--summary", "New <b>.", "--release-url", "https://example.org/1.2.0")
    made = web(tmp_path, script, *files, *more)
    assert made.code == 0, made.err
    site = tmp_path / "site"
    manifest = json.loads((site / "manifest.json").read_text())
    assert (manifest["name"], manifest["version"]) == ("Greenhouse", "1.2.0")
    assert manifest["new_install_prompt_erase"] is True
    families = [build["chipFamily"] for build in manifest["builds"]]
    assert families == ["ESP32", "ESP32-C5", "ESP32-C6"]
    for build, chip, offset in zip(
        manifest["builds"], ("esp32", "esp32c5", "esp32c6"), (0x1000, 0x2000, 0), strict=True
    ):
        written = {part["offset"]: (site / part["path"]).read_bytes() for part in build["parts"]}
        assert sorted(written) == [offset, 0x8000, 0xD000, 0x10000]
        assert written[0x8000] == OTA_TABLE.to_bytes()
        assert written[0xD000] == b"\xff" * 0x2000
        assert written[0x10000] == small_app(chip)
        ota = build["ota"]
        assert (site / ota["path"]).read_bytes() == small_app(chip)
        assert ota["md5"] == hashlib.md5(small_app(chip)).hexdigest()
        assert (ota["summary"], ota["release_url"]) == (more[1], more[3])
    assert (site / "esp-web-tools" / "other.js").read_text() == "1"
    assert (site / "esp-web-tools" / "LICENSE").exists()
    page = (site / "index.html").read_text()
    assert 'src="esp-web-tools/install-button.js"' in page
    assert "{{" not in page
    assert "its settings and files stay" in page
    made = web(tmp_path, script, files[0], "--with-package", "--force")
    assert made.code == 0, made.err
    assert "its files are replaced" in (site / "index.html").read_text()


def test_names_and_labels_from_outside_stay_text_and_in_the_directory(
    tmp_path: Path, script: Path
) -> None:
    odd = Partition("../../x/</a>", 1, 0x06, 0x40000, 0x1000)
    table = PartitionTable((*[p for p in TABLE if p.label != "vfs"], odd))
    firmware = build_firmware(
        "esp32", table=table, app=small_app(), contents={odd.label: b"something"}
    )
    path = save(tmp_path / "odd.bin", firmware)
    name = '<script>alert(1)</script>"&{{rows}}'
    made = run(
        "web", path, "-o", tmp_path / "site", "--name", name, "--version", "1",
        "--esp-web-tools", script,
    )  # fmt: skip
    assert made.code == 0, made.err
    page = (tmp_path / "site" / "index.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&amp;{{rows}}" in page
    assert {p.parent.name for p in tmp_path.rglob("*") if p.name.startswith("esp32-")} == {
        "firmware"
    }


WOULD_NOT_BOOT = bytearray(small_firmware("esp32", OTA_TABLE))
WOULD_NOT_BOOT[0x10000 - 0x1000 + 200] ^= 1
DUMP = build_firmware("esp32", table=OTA_TABLE, app=small_app(), contents={"nvs": b"ssid pass"})
LOOSE = small_firmware(
    "esp32", PartitionTable(tuple(replace(p, type=1, subtype=6) for p in TABLE if p != NVS))
)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (small_app("esp32"), "app image alone"),
        (bytes(WOULD_NOT_BOOT), "hecksum"),
        (LOOSE, "no app partition"),
        (DUMP, "'nvs' is not blank"),
        (b"<!doctype html>", "web page"),
        (b"", "empty"),
    ],
    ids=["app", "damaged", "no app", "secrets", "page", "empty"],
)
def test_what_would_not_boot_or_tell_secrets_gets_no_page(
    tmp_path: Path, script: Path, content: bytes, words: str
) -> None:
    good = save(tmp_path / "good.bin", small_firmware("esp32s3", OTA_TABLE))
    bad = save(tmp_path / "bad.bin", content)
    refused = web(tmp_path, script, good, bad)
    assert_refused(refused, 1)
    assert words in refused.err
    assert not (tmp_path / "site").exists()


def test_two_firmwares_of_one_chip_and_requests_without_sense_are_refused(
    tmp_path: Path, script: Path
) -> None:
    one = save(tmp_path / "one.bin", small_firmware("esp32", OTA_TABLE))
    two = save(tmp_path / "two.bin", small_firmware("esp32", TABLE))
    for args, words in (
        ((one, two), "are both for ESP32"),
        ((one, one), "are both for ESP32"),
        ((one, "--with", "ble"), "--with-package"),
        ((one, "--with-package", "--with", "none"), "no part 'none'"),
        ((one, "--version", "1\n2"), "printable"),
        ((one, "--name", "x" * 65), "printable"),
        ((one, "--release-url", "javascript:alert(1)"), "https://"),
        ((one, "--esp-web-tools", tmp_path), "is not ESP Web Tools"),
    ):
        refused = run("web", "-o", tmp_path / "site", *NAMED, "--esp-web-tools", script, *args)
        assert_refused(refused, 2)
        assert words in refused.err
        assert not (tmp_path / "site").exists()
    assert web(tmp_path, script, one).code == 0
    before = (tmp_path / "site" / "manifest.json").read_bytes()
    refused = web(tmp_path, script, two)
    assert_refused(refused, 2)
    assert "--force" in refused.err
    assert (tmp_path / "site" / "manifest.json").read_bytes() == before
    assert web(tmp_path, script, two, "--force").code == 0
    assert (tmp_path / "site" / "manifest.json").read_bytes() != before


def test_the_bluetooth_page_is_one_file_that_is_not_overwritten_unasked(tmp_path: Path) -> None:
    made = run("ble", "web", "-o", tmp_path / "deep" / "site")
    assert made.code == 0, made.err
    page = tmp_path / "deep" / "site" / "index.html"
    text = page.read_text()
    assert "\n/* " not in text  # all of its parts are in their places
    assert "src=" not in text
    page.write_text("mine")
    assert_refused(run("ble", "web", "-o", page.parent), 2)
    assert page.read_text() == "mine"
    assert run("ble", "web", "-o", page.parent, "--force").code == 0
    assert page.read_text() == text


def test_only_the_pinned_package_is_taken_from_npm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "one.bin", small_firmware("esp32", OTA_TABLE))
    request = ("web", path, "-o", tmp_path / "site", *NAMED)
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tools))
    refused = run(*request)
    assert_refused(refused, 1)
    assert "npm" in refused.err
    assert "--esp-web-tools" in refused.err
    for body, words in (
        ('echo tampered > "$5/esp-web-tools.tgz"', "SHA-512"),
        ('echo "no network" >&2; exit 1', "no network"),
        ("exit 0", "SHA-512"),
    ):
        npm = tools / "npm"
        npm.write_text(f"#!{os.path.realpath('/bin/sh')}\n{body}\n")
        npm.chmod(0o755)
        refused = run(*request)
        assert_refused(refused, 1)
        assert words in refused.err
        assert not (tmp_path / "site").exists()
        assert not list((tmp_path / "cache").rglob("*.tgz"))
