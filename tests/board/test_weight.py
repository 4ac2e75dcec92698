"""What measures the weight of the package measures right: bench/weight.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from mpota.firmware import sample
from mpota.release.build import Content
from mpota.release.signing import PrivateKey
from mpota.units import KiB

from bench import web, weight

APP = sample.build_app("esp32")
BY_CHANCE = 4 * KiB  # a buffer that what lies on the interpreter's stack may seem to point to


def modules(directory: Path, **sources: str) -> dict[str, bytes]:
    for name, text in sources.items():
        (directory / f"{name}.py").write_text(text)
    return weight.compile_modules(sorted(directory.glob("*.py")))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> weight.Installed:
    sources = {"__init__": "", "one": "import ota.two", "two": "import ota.three", "three": ""}
    directory = tmp_path_factory.mktemp("package")
    return weight.install(modules(directory, **sources), APP)


def test_a_file_takes_whole_blocks(tmp_path):
    assert weight.install({}, APP).used_size == 4 * 4096  # /lib and /lib/ota: two blocks each
    large = modules(tmp_path, large="X = " + repr("x" * 5000))
    assert weight.install(large, APP).used_size == 6 * 4096


def test_each_import_reads_the_directory_and_the_file_again(package):
    one, three = (
        weight.file_reads(package.content, f"import ota.{name}") for name in ("three", "one")
    )
    assert 10 < one < three < 4 * one
    assert weight.file_reads(package.content, "") == 0


def test_reads_of_a_slot_are_no_reads_of_files(package):
    script = "from esp32 import Partition\nbuf = bytearray(4096)\np = Partition('ota_1')\n"
    script += "for n in range(10): p.readblocks(n, buf)"
    assert weight.file_reads(package.content, script) == 0
    assert weight.all_reads(package.content, script) == 10


def test_the_least_heap_is_what_the_script_takes(package):
    takes = 60 * KiB
    found = weight.least_heap(package.content, f"kept = bytearray({takes})\nprint('done')")
    assert takes < found <= takes + 9 * KiB  # the table of names takes its part
    assert weight.least_heap(package.content, "bytearray(1 << 20)\nprint('done')") is None


def test_the_least_heap_is_above_all_that_fail_close_by(package):
    """As where success is a chance of fragments."""
    script = "import gc\nk = gc.mem_free() >> 10\nif k > 60 and k not in (65, 66): print('done')"
    assert 70 * KiB < weight.least_heap(package.content, script) <= 75 * KiB


def test_a_script_that_fails_is_no_figure(package):
    with pytest.raises(RuntimeError, match="nothing"):
        weight.file_reads(package.content, "import ota.nothing")


# --- what the package may weigh: `python -m bench weight` has the figures


@pytest.fixture(scope="module")
def core() -> weight.Installed:
    return weight.install(weight.subject().core, APP)


def test_the_core_and_all_parts_stay_light(core: weight.Installed) -> None:
    """Whole blocks; the 16 KiB of /lib and /lib/ota are not counted."""
    directories = 16 * KiB
    assert core.used_size - directories <= 64 * KiB
    subject = weight.subject()
    large = {"channel": 24, "ddi": 24, "mqtt": 24, "web": 20}
    others = {
        name: data
        for name, data in subject.everything.items()
        if not any(weight.is_of(name, part) for part in large)
    }
    assert weight.install(others, APP).used_size - directories <= 128 * KiB
    for part, limit in large.items():
        assert weight.part_size(part, subject, APP) <= limit * KiB


def test_an_idle_poll_reads_no_file_and_takes_little_heap() -> None:
    key = PrivateKey.generate()
    everything = weight.install(weight.subject().everything, APP)
    files = {
        "stable.channel": weight.channel_file(key),
        weight.IDLE_PATH: weight.IDLE_ANSWER,
    }
    with web.serving(files) as server:
        content = weight.after_poll(weight.trusting(everything.content, key), server.root)
        for follow in (weight.FOLLOW_CHANNEL, weight.FOLLOW_SERVER):
            assert weight.idle_reads(content, server.root, follow) == 0
            assert weight.idle_heap(content, server.root, follow) <= 8 * KiB + BY_CHANCE
        told, channel = weight.FOLLOW_BROKER, weight.FOLLOW_CHANNEL
        assert weight.idle_reads(content, server.root, told) == 0
        assert weight.idle_heap(content, server.root, told, beside=channel) <= 8 * KiB + BY_CHANCE


def test_a_channel_makes_room_for_the_release_that_it_installs() -> None:
    """`python -m bench weight` has how much more heap is enough: 8 KiB are to do."""
    key = PrivateKey.generate()
    old, new = (sample.build_app("esp32", version=version, size=0x18000) for version in "12")
    app = Content("app", "app.bin", new).compressed().with_delta(old)
    everything = weight.install(weight.subject().everything, old)
    with web.serving(weight.published(app, key)) as server:
        trusting = weight.trusting(everything.content, key)
        assert 0 < weight.held_by_channel(trusting, server) <= 8 * KiB + BY_CHANCE


def test_a_boot_with_nothing_to_do_reads_little(core: weight.Installed) -> None:
    assert weight.cancel_reads(core.content) <= 250


def test_what_an_update_imports_is_read_in_few_pieces(core: weight.Installed) -> None:
    modules = "update ready otadata image chips http http_connect slot http_ask begin finish"
    script = "".join(f"import ota.{name}\n" for name in modules.split())
    assert weight.file_reads(core.content, script) <= 1900
