"""``mpota status``: what runs on a board, and what boots next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import click

from mpota.commands import _report as report
from mpota.commands._options import json_option, port_argument
from mpota.units import short_digest


@click.command()
@port_argument
@json_option
def command(port: str, as_json: bool) -> None:
    """Show the apps of the board on PORT: what runs, boots next, is confirmed, is intact.

    The program on the board is stopped meanwhile, and started again at the end.
    """
    from mpota.push.repl import Session
    from mpota.push.serial import Status

    with report.doing(f"asking the board on {port}"), Session(port) as session:
        status = Status.read(session, verify=True)
    if as_json:
        report.print_json({**status.info, "release": status.release})
        return
    info = status.info
    report.say(f"running: {info['running']}, next boot: {info['boot'] or info['running']}")
    report.say(f"next update goes to: {info['next'] or 'nowhere (mpota resize PORT --layout ota)'}")
    release = status.release
    report.say(
        f"release: {release['name']} {release.get('version')}"
        if release.get("name")
        else "release: none"
    )
    columns = ("Slot", "State", "App", ">Size", "Digest", "")
    report.print_table(columns, _rows(info))


def _rows(info: dict[str, Any]) -> Iterator[Sequence[str]]:
    for slot in info["slots"]:
        is_running = slot["label"] == info["running"]
        marks = [
            "runs" if is_running else "",
            "boots next" if slot["label"] == info["boot"] else "",
            "" if slot["valid"] else slot.get("problem", "not valid"),
        ]
        marked = ", ".join(filter(None, marks))
        app = (slot.get("micropython") or slot.get("version") or "-").partition(" on ")[0]
        yield (
            slot["label"],
            slot["state"] or "-",
            app,
            f"{slot['image_size']:,}" if "image_size" in slot else "-",
            short_digest(slot.get("digest", "")),
            report.Toned(marked, report.Tone.GOOD) if is_running else marked,
        )
