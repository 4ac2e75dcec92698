"""``mpota push``: an update through the REPL, or to a board that listens."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mpota.commands import _report as report
from mpota.commands._finding import find, push_all, where_options
from mpota.commands._options import complete_files, complete_ports, json_option, yes_option
from mpota.commands._project import make_package, push_project
from mpota.commands._release_options import keys_option
from mpota.commands._sending import (
    SETTLE_PROJECT_S,
    SETTLE_S,
    check_option,
    outcomes,
    secret_option,
    send_file,
    settle_option,
)
from mpota.errors import UsageError

if TYPE_CHECKING:
    from mpota.push.known_apps import KnownApps
    from mpota.push.update import Options, Package


@click.command()
@click.argument("port", metavar="PORT|tcp://HOST[:PORT]|ble://NAME", shell_complete=complete_ports)
@click.argument(
    "package",
    metavar="DIR|APP|FIRMWARE|BUNDLE|DELTA|URL",
    required=False,
    shell_complete=complete_files,
)
@click.option("--all", "has_all", is_flag=True, help="To all boards that `mpota scan` finds.")
@where_options
@yes_option
@check_option
@click.option(
    "--check-timeout",
    type=click.FloatRange(min=0),
    default=30.0,
    help="Seconds to go on trying the check (default 30).",
)
@settle_option("the new app", "; 1 of a directory")
@click.option("--force", is_flag=True, help="Install what runs already, or has failed before.")
@click.option(
    "--delta-from",
    "base",
    type=click.Path(path_type=Path),
    help="Firmware that the board may run: where it does, only what differs is sent.",
)
@keys_option
@click.option("--watch", is_flag=True, help="Push DIR again on each save, until Ctrl-C.")
@secret_option
@json_option
def command(
    port: str,
    package: str | None,
    has_all: bool,
    addresses: tuple[str, ...],
    only: str | None,
    timeout: float,
    yes: bool,
    check: str | None,
    check_timeout: float,
    settle: float | None,
    force: bool,
    base: Path | None,
    keys: tuple[Path, ...],
    watch: bool,
    secret: bytes | None,
    as_json: bool,
) -> None:
    """Update the board on PORT, see the new app boot, check its health, confirm it.

    The board must have the ota package (mpota install). A URL is fetched by the board itself.
    After a broken connection the same command goes on: what has arrived is not sent again.

    Of an app only what differs is sent, where the board runs one that was pushed from here before
    or is given by --delta-from; to boards with keys, only what a signed bundle brings.

    At tcp://HOST and ble://NAME the app on the board listens (ota.listen, ota.ble), and it is the
    app's business to check its health and to confirm it.

    mpota push --all FILE|DIR looks for boards that listen, shows them, asks, and sends it to those
    that do not run it yet.

    A directory is a release that is made on the fly, by what [tool.mpota] in its pyproject.toml
    says; only files that the board does not have so are sent. With --watch, on each save again.

    \b
    Exit codes: 0 the new app runs, confirmed     3 it did not boot or stay: rolled back
                1 refused, the board is unchanged 4 unhealthy: given up, rolled back
                2 wrong usage                     5 board lost after the switch
    With --json, one object on every exit: "outcome" tells them apart in words.
    """
    from mpota.push.known_apps import KnownApps
    from mpota.push.schemes import has_repl
    from mpota.push.update import HealthCheck, Options

    with outcomes(as_json):
        if has_all:
            if package or check or base or watch:
                raise UsageError("--all finds the boards itself, and takes one file or directory")
            wanted = _package_for_all(port, keys)
            search = partial(find, addresses, only, timeout)
            push_all(search, wanted, secret, force=force, yes=yes, as_json=as_json)
            return
        if package is None:
            raise UsageError("what is to be sent?", "mpota push PORT FILE, or --all FILE")
        if addresses or only:
            raise UsageError("--address and --only are for --all")
        if Path(package).is_dir():
            options = Options(
                HealthCheck.parse(check, check_timeout),
                settle or SETTLE_PROJECT_S,
                force,
                KnownApps.with_firmware(base).find,
                secret,
            )
            push_project(port, Path(package), options, keys, watch=watch, as_json=as_json)
            return
        if keys or watch:
            raise UsageError(f"--key and --watch are for directories, '{package}' is none")
        if not has_repl(port):
            if check or force or base:
                raise UsageError("--check, --force and --delta-from need a serial port")
            send_file(port, package, Options(secret=secret), as_json=as_json)
            return
        known = KnownApps.with_firmware(base)
        options = Options(
            HealthCheck.parse(check, check_timeout),
            settle or SETTLE_S,
            force,
            find_base=known.find,
        )
        _push_to_repl(port, package, options, known, as_json=as_json)


def _package_for_all(name: str, keys: tuple[Path, ...]) -> Package:
    from mpota.push.update import Package

    if Path(name).is_dir():
        return make_package(Path(name), keys)
    if keys:
        raise UsageError(f"--key is for directories, '{name}' is none")
    return Package.open(name)


def _push_to_repl(
    port: str, package: str, options: Options, known: KnownApps, *, as_json: bool
) -> None:
    from mpota.push.outcome import pushed_to_json
    from mpota.push.schemes import connect
    from mpota.push.update import Package

    source = Package.open(package)
    if not as_json:
        options = replace(options, tell=report.say)
    with ExitStack() as stack:
        with report.doing(f"connecting to the board on {port}"):
            board = stack.enter_context(connect(port))
        label = f"sending {source.name}"
        progress = stack.enter_context(report.progress(label, len(source.data)))
        done = board.push(source, replace(options, progress=progress))
    known.add(source.app)
    if as_json:
        report.print_json(pushed_to_json(done))
    else:
        report.say(str(done), tone=report.Tone.GOOD)
