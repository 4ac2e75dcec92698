"""``mpota rollback``: a board back to what ran before."""

from __future__ import annotations

import click

from mpota.commands import _report as report
from mpota.commands._options import json_option, port_argument
from mpota.commands._sending import check_option, outcomes, settle_option


@click.command()
@port_argument
@check_option
@settle_option("the app")
@json_option
def command(port: str, check: str | None, settle: float, as_json: bool) -> None:
    """Have the board on PORT start the app that ran before, see it boot, confirm it.

    An app, or files, that are not confirmed yet are given up. The board must have the ota package;
    without it, mpota slots --boot selects an app by the ROM loader. Exit codes as of mpota push.
    """
    from mpota.push.outcome import pushed_to_json
    from mpota.push.repl import Session
    from mpota.push.serial import roll_back
    from mpota.push.update import HealthCheck, Options

    with outcomes(as_json):
        tell = (lambda text: None) if as_json else report.say
        options = Options(HealthCheck.parse(check, 30.0), settle, tell=tell)
        with Session(port) as session:
            done = roll_back(session, options)
        if as_json:
            report.print_json(pushed_to_json(done))
        elif done.is_app:
            report.say(str(done), tone=report.Tone.GOOD)
        else:
            report.say(f"{done.slot} runs with the files that it had before", tone=report.Tone.GOOD)
