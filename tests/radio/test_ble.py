"""Updates over BLE: real MicroPython, two controllers of bumble, bleak's interface."""

from __future__ import annotations

import asyncio
import hashlib
import os
import struct
from collections.abc import Awaitable, Callable

import pytest
from mpota import cli
from mpota.errors import MpotaError
from mpota.push import ble
from mpota.push.update import LostLinkError, RefusedError
from mpota.push.wire import Update
from mpota.virtual.board import Board, End
from mpota.virtual.cuts import power_cut
from mpota.virtual.flash import CutMode
from mpota.virtual.radio import BOARD_ADDRESS, Noise, Radio

from tests.support import ota_board, releases
from tests.support.protocol_client import (
    AGAIN,
    DONE,
    END,
    READY,
    STATUS,
    WELCOME,
    Plain,
    code,
    text,
)
from tests.support.radio import (
    LARGE_SIZE,
    NAME,
    Powered,
    backend,
    in_reach,
    large_flash,
    peripheral,
    push,
    stop,
    update,
)

NOISY = Noise(loss=0.01, repeat=0.01, delay=0.01, deaf=0.005)
BOTH = ("ota_0", "ota_1")


@pytest.mark.parametrize(("mtu", "size"), [(23, 0x8000), (185, 0x27000), (517, 0x27000)])
def test_an_update_arrives_at_any_mtu_through_noise(mtu: int, size: int) -> None:
    new = update(size)
    with in_reach(NOISY, mtu) as (radio, board):
        powered = Powered(board, peripheral(", mtu=517, open=True"))
        sent = push(radio, new)
        run = powered.wait()
        assert (run.labels, run.traceback) == (BOTH, "")
        assert ota_board.slot_content(board, size)[: len(new.data)] == new.data
    assert radio.traffic.lost > 0
    assert sent.connections == 1


def test_a_real_firmware_arrives_though_one_percent_of_the_packets_is_dropped() -> None:
    new = update(LARGE_SIZE)
    with in_reach(Noise(loss=0.01), content=large_flash()) as (radio, board):
        powered = Powered(board, peripheral())
        sent = push(radio, new)
        run = powered.wait()
        assert (run.labels, run.traceback) == (BOTH, "")
        assert board.flash.read(0x1E0000, len(new.data)) == new.data
    assert radio.traffic.lost > 50
    assert radio.traffic.overflows == 0
    assert sent.sent_size < 1.2 * len(new.data)


def test_what_was_sent_before_the_link_broke_is_not_sent_again() -> None:
    new = update()
    breaks = [0x6000, 0x12345, len(new.data) - 5000]
    with in_reach() as (radio, board):

        def progress(done: int, total: int) -> None:
            if breaks and done > breaks[0]:
                breaks.pop(0)
                radio.break_link()

        powered = Powered(board, peripheral())
        sent = push(radio, new, progress=progress)
        run = powered.wait()
    assert run.labels == BOTH
    assert sent.connections == 4
    assert sent.sent_size < len(new.data) + 4 * 2 * 4096


def test_an_update_goes_on_after_a_power_cut_and_the_old_app_runs_meanwhile() -> None:
    new = update()
    with in_reach() as (radio, board):
        with power_cut(board.flash, 60, CutMode.TORN):
            first = Powered(board, peripheral())
            with pytest.raises(LostLinkError):
                push(radio, new, attempts=2)
            assert first.wait().end is End.POWER_CUT
        assert board.run().labels == ("ota_0",)
        second = Powered(board, peripheral())
        sent = push(radio, new)
        assert second.wait().labels == BOTH
        assert ota_board.slot_content(board, len(new.data)) == new.data
    assert sent.sent_size <= len(new.data) - 0x10000


# --- clients that lie, talk nonsense, or fall silent

Hostile = Callable[[Plain], Awaitable[None]]
NEW = update().data


async def _lie_about_the_digest(client: Plain) -> None:
    await client.greet()
    assert (await client.begin(NEW, sha=bytes(32)))[0] == READY
    await client.send(NEW)
    answer = await client.end()
    assert code(answer) == "sha"
    assert hashlib.sha256(NEW).hexdigest() in text(answer)


async def _lie_that_it_is_shorter(client: Plain) -> None:
    await client.greet()
    part = NEW[: 0x9000 + 100]
    await client.begin(part)
    await client.send(part)
    assert code(await client.end()) == "truncated"


async def _lie_that_it_is_longer(client: Plain) -> None:
    await client.greet()
    await client.begin(NEW[:8192], size=50_000)
    await client.send(NEW[:8192])
    await client.link.send(bytes((END, 0)))
    assert (await client.hear())[0] == AGAIN
    await _expect_timeout(client)


async def _send_more_than_a_slot_holds(client: Plain) -> None:
    await client.greet()
    await client.begin(NEW, size=0x40001)
    assert code(await client.send(NEW)) == "too-long"


async def _announce_what_cannot_be(client: Plain) -> None:
    await client.greet()
    assert code(await client.begin(NEW, size=0xFFFFFFFF)) == "too-long"


async def _announce_nothing(client: Plain) -> None:
    await client.greet()
    assert code(await client.begin(b"")) == "empty"


async def _have_another_chip(client: Plain) -> None:
    await client.greet()
    answer = await client.begin(NEW, chip=9)
    assert (code(answer), text(answer)) == (
        "wrong-chip",
        "the update is for ESP32-S3, this board is ESP32",
    )


async def _send_no_firmware(client: Plain) -> None:
    await client.greet()
    junk = os.urandom(9000)
    await client.begin(junk)
    assert code(await client.send(junk)) == "not-an-image"


async def _send_wrong_windows(client: Plain) -> None:
    await client.greet()
    await client.begin(NEW)
    for _ in range(8):
        assert (await client.send(NEW[:4096], crc_error=1))[0] == AGAIN
    answer = await client.send(NEW[:4096], crc_error=1)
    assert code(answer) == "window"
    assert "bytes 0 to 4096" in text(answer)


async def _ignore_credit(client: Plain) -> None:
    await client.greet()
    await client.begin(NEW)
    for _ in range(300):
        await client.link.send_data(b"\0\0" + bytes(200))
    await client.abort()
    while (answer := await client.hear())[0] == AGAIN:
        pass
    assert code(answer) == "aborted"


async def _begin_without_a_greeting(client: Plain) -> None:
    assert code(await client.begin(NEW)) == "protocol"


async def _end_without_a_beginning(client: Plain) -> None:
    await client.greet()
    assert code(await client.end()) == "protocol"


async def _talk_nonsense(client: Plain) -> None:
    await client.link.send_data(os.urandom(30))
    await client.link.send(bytes((0x77,)) + os.urandom(60))
    assert code(await client.hear()) == "protocol"


async def _speak_another_version(client: Plain) -> None:
    await client.link.send(bytes((1, 9)) + bytes(16))
    answer = await client.hear()
    assert (code(answer), text(answer)) == ("protocol", "protocol version 9, this is 2")


async def _fall_silent(client: Plain) -> None:
    await client.greet()
    await client.begin(NEW)
    await _expect_timeout(client)


async def _fall_silent_before_the_end(client: Plain) -> None:
    await client.greet()
    await client.begin(NEW)
    await client.send(NEW)
    await _expect_timeout(client)


async def _expect_timeout(client: Plain) -> None:
    while (answer := await client.hear())[0] == AGAIN:
        pass
    assert code(answer) == "timeout"


HOSTILE = (
    _lie_about_the_digest,
    _lie_that_it_is_shorter,
    _lie_that_it_is_longer,
    _send_more_than_a_slot_holds,
    _announce_what_cannot_be,
    _announce_nothing,
    _have_another_chip,
    _send_no_firmware,
    _send_wrong_windows,
    _ignore_credit,
    _begin_without_a_greeting,
    _end_without_a_beginning,
    _talk_nonsense,
    _speak_another_version,
    _fall_silent,
    _fall_silent_before_the_end,
)


def talk(radio: Radio, client: Hostile) -> None:
    async def run() -> None:
        async with ble.connect(NAME, backend=backend(radio)) as link:
            await client(Plain(link))

    asyncio.run(run())


def test_after_every_hostile_client_the_board_takes_a_good_update(
    hostile: Callable[..., None],
) -> None:
    hostile(len(HOSTILE))
    with in_reach() as (radio, board):
        powered = Powered(board, peripheral(", silence=2, open=True"))
        for client in HOSTILE:
            talk(radio, client)
            assert ota_board.records(board)[1].ota_seq == 0xFFFFFFFF, client
        push(radio, update())
        run = powered.wait()
    assert (run.labels, run.traceback) == (BOTH, "")
    assert "Unhandled" not in run.output


@pytest.mark.parametrize("client", [_lie_about_the_digest, _fall_silent_before_the_end])
def test_the_old_app_starts_after_a_client_that_lied(client: Hostile) -> None:
    with in_reach() as (radio, board):
        powered = Powered(board, peripheral(", silence=2, open=True"))
        talk(radio, client)
        stop(radio)
        assert powered.wait().end is End.IDLE
        assert board.run().labels == ("ota_0",)


def test_an_update_that_the_app_refuses_changes_nothing() -> None:
    with in_reach() as (radio, board):
        powered = Powered(board, peripheral())
        stop(radio)
        assert ota_board.slot_writes(powered.wait()) == []


# --- who may


def test_where_keys_are_installed_only_signed_bundles_are_taken() -> None:
    key = releases.key()
    signed = releases.make(releases.app(size=0x10000), keys=(key,)).to_bytes()
    unsigned = releases.make(releases.app(size=0x10000)).to_bytes()
    with in_reach() as (radio, board):
        ota_board.output(board, f"import ota; ota.keys.add({key.public.digest.hex()!r})")
        powered = Powered(board, peripheral())
        for what in (NEW, unsigned):
            with pytest.raises(RefusedError) as refused:
                push(radio, Update("x", what))
            assert refused.value.code == "unsigned"
        board.flash.restart_count()
        sent = push(radio, Update("demo.bundle", signed))
        run = powered.wait()
    assert sent.board.signed_only
    assert (run.labels, run.traceback) == (BOTH, "")


def test_a_client_that_is_written_from_the_protocol_page_alone_brings_an_update() -> None:
    async def client(plain: Plain) -> None:
        assert (await plain.greet())[0] == WELCOME
        assert await plain.begin(NEW) == struct.pack("<BIH", READY, 0, 4096)
        assert await plain.send(NEW) == struct.pack("<BIH", STATUS, len(NEW), 0)
        assert await plain.end(restart=1) == bytes((DONE, 1))

    with in_reach() as (radio, board):
        powered = Powered(board, peripheral())
        talk(radio, client)
        assert powered.wait().labels == BOTH


def test_a_secret_is_asked_for_over_ble_as_well() -> None:
    with in_reach() as (radio, board):
        powered = Powered(board, peripheral(", secret='open sesame 0123'"))
        with pytest.raises(MpotaError, match="asks for a secret"):
            push(radio, update())
        push(radio, update(), secret=b"open sesame 0123")
        assert powered.wait().labels == BOTH


def test_a_board_with_a_passkey_takes_writes_only_after_pairing() -> None:
    with in_reach(passkey=123456) as (radio, board):
        powered = Powered(board, peripheral(", passkey=123456"))
        with pytest.raises(LostLinkError, match=r"(?i)insufficient"):
            push(radio, update(), attempts=1)
        push(radio, update(), pair=True)
        assert powered.wait().labels == BOTH


def test_without_keys_secret_or_passkey_nothing_is_advertised() -> None:
    with in_reach() as (_, board):
        run = board.run("import ota.ble\nota.ble.Peripheral().run()")
    assert "anyone could update it" in run.traceback


def test_the_passkey_is_another_one_for_each_pairing_and_shown_by_the_app() -> None:
    script = peripheral(", passkey=show").replace(
        "is_stopped =", "def show(passkey):\n    print('shown', passkey)\nis_stopped =", 1
    )
    with in_reach(passkey=None) as (radio, board):
        powered = Powered(board, script)
        with pytest.raises(RefusedError, match="does not want version stop"):
            push(radio, Update("stop", b"stop", version="stop"), pair=True)
        run = powered.wait()
        first = radio.shown.pop()
        assert f"shown {first}\n" in run.output
        powered = Powered(board, script)
        push(radio, update(), pair=True)
        run = powered.wait()
        assert (run.labels, run.traceback) == (BOTH, "")
        assert f"shown {radio.shown[-1]}\n" in run.output
    assert 0 <= first < 1_000_000
    assert first != radio.shown[-1]


def test_a_wrong_passkey_opens_nothing() -> None:
    with in_reach(passkey=111111) as (radio, board):
        powered = Powered(board, peripheral(", passkey=123456"))
        with pytest.raises(MpotaError):
            push(radio, update(), pair=True, attempts=1)
        radio.passkey = 123456
        stop(radio, pair=True)
        assert ota_board.slot_writes(powered.wait()) == []


# --- the app's own use of Bluetooth


def test_the_app_keeps_its_own_services_and_its_own_handler() -> None:
    script = f"""
import bluetooth, ota.ble, time
events = []
def irq(event, data):
    events.append(event)
own = bluetooth.UUID(0x180F), ((bluetooth.UUID(0x2A19), bluetooth.FLAG_WRITE),)
p = ota.ble.Peripheral({NAME!r}, open=True)
((level,),) = p.start((own,), irq)
while 3 not in events:  # before an update is complete, with which it may restart at once
    p.poll()
    time.sleep_ms(2)
print("level", p._ble.gatts_read(level), 1 in events)
while True:
    p.poll()
    time.sleep_ms(2)
"""

    async def write(radio: Radio) -> None:
        async with ble.connect(NAME, backend=backend(radio)) as link:
            level = "00002a19-0000-1000-8000-00805f9b34fb"
            await link.client.write_gatt_char(level, b"\x42", response=True)

    with in_reach() as (radio, board):
        powered = Powered(board, script)
        asyncio.run(write(radio))
        push(radio, update())
        run = powered.wait()
    assert "level b'B' True" in run.output
    assert run.labels == BOTH


def test_an_app_with_asyncio_goes_on_during_an_update() -> None:
    script = f"""
import asyncio, ota.ble
ticks = 0
async def blink():
    global ticks
    while True:
        ticks += 1
        await asyncio.sleep_ms(10)
async def main():
    asyncio.create_task(blink())
    p = ota.ble.Peripheral({NAME!r}, open=True, reboot=False)
    task = asyncio.create_task(p.serve())
    while not p.receiver.is_done:
        await asyncio.sleep_ms(20)
    await asyncio.sleep_ms(200)
    task.cancel()
    print("went on", ticks > 10)
asyncio.run(main())
"""
    with in_reach() as (radio, board):
        powered = Powered(board, script)
        push(radio, update())
        run = powered.wait()
        assert (run.end, run.traceback) == (End.IDLE, "")
        assert "went on True" in run.output
        assert board.run().labels == ("ota_1",)


# --- memory


def heap_peak(board: Board, radio: Radio, what: Update) -> int:
    """Bytes above idle that an update takes."""
    script = f"""
import gc, ota.ble
gc.collect()
base = gc.mem_alloc()
peak = 0
def progress(done, total):
    global peak
    gc.collect()
    peak = max(peak, gc.mem_alloc() - base)
p = ota.ble.Peripheral({NAME!r}, open=True, progress=progress, reboot=False)
p.run()
print("peak", peak)
"""
    powered = Powered(board, script)
    push(radio, what)
    run = powered.wait()
    assert (run.end, run.traceback) == (End.IDLE, "")
    return int(run.output.split()[-1])


def test_an_update_takes_less_than_42_kib_of_heap_its_code_included() -> None:
    """What the app has loaded of that code before is let go of when the update begins."""
    with in_reach() as (radio, board):
        assert 12 * 1024 < heap_peak(board, radio, update()) < 42 * 1024


def locked(events: tuple[int, ...], count: int) -> str:
    """`peripheral`, but while ``count`` of those events are handled there is no memory."""
    return f"""
import micropython
left = {count}
def irq(event, data):
    global left
    if event not in {events} or not left:
        return p._irq(event, data)
    left -= 1
    micropython.heap_lock()
    try:
        return p._irq(event, data)
    finally:
        micropython.heap_unlock()
""" + peripheral().replace("p.start()\n", "p.start()\np._ble.irq(irq)\n")


def test_connections_come_and_go_where_no_event_gets_any_memory() -> None:
    connect, disconnect, mtu = 1, 2, 21
    with in_reach() as (radio, board):
        powered = Powered(board, locked((connect, disconnect, mtu), 1000))
        talk(radio, _announce_nothing)
        talk(radio, _talk_nonsense)
        push(radio, update())
        run = powered.wait()
    assert run.labels == BOTH
    assert "Unhandled" not in run.output


def test_a_write_for_which_there_is_no_memory_is_answered() -> None:
    write = 3
    with in_reach() as (radio, board):
        powered = Powered(board, locked((write,), 1))
        with pytest.raises(RefusedError, match="not enough memory"):
            push(radio, update())
        push(radio, update())
        assert powered.wait().labels == BOTH


# --- the command


def test_scan_shows_boards_and_push_sends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: object
) -> None:
    app = tmp_path / "new.bin"  # type: ignore[operator]
    app.write_bytes(NEW)
    with in_reach() as (radio, board):
        monkeypatch.setattr(ble, "OWN_BLUETOOTH", backend(radio))
        powered = Powered(board, peripheral())
        assert mpota("ble", "scan", "--timeout", "2") == 0
        assert f"{NAME}  {BOARD_ADDRESS}" in capsys.readouterr().out
        assert mpota("ble", "push", BOARD_ADDRESS, str(app)) == 0
        said = capsys.readouterr().out
        assert f"{len(NEW):,} bytes in" in said
        assert "the board (MicroPython 1.26.1) restarts into v1.27.0" in said
        assert powered.wait().labels == BOTH
        assert mpota("ble", "push", "nobody", str(app), "--timeout", "0.2", "--attempts", "1") == 1
        assert "no board 'nobody' in 0.2 s" in capsys.readouterr().err


def mpota(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main(list(arguments))
    return int(end.value.code or 0)
