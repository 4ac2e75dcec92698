"""``mpota deploy``: many boards by one plan."""

from __future__ import annotations

import json
from pathlib import Path

import click

from mpota.commands import _report as report
from mpota.commands._options import json_option
from mpota.commands._results import print_results, to_document
from mpota.storage.file import write_file


@click.command()
@click.argument("plan", type=click.Path(path_type=Path))
@json_option
@click.option(
    "--report",
    "report_path",
    type=click.Path(path_type=Path),
    help="Write the JSON report to this file as well.",
)
@click.option("--force", is_flag=True, help="Install what runs already, or has failed before.")
@click.pass_context
def command(
    ctx: click.Context, plan: Path, as_json: bool, report_path: Path | None, force: bool
) -> None:
    """Bring all boards of PLAN (TOML) to the ota package, keys, files and firmware it names.

    A board's port is whatever `mpota push` takes. Boards are done in parallel; after as many
    failures as the plan allows no other begins. Run again, it does only what is missing, but boards
    that listen are sent all of it. Exit code 1 if a board is not what the plan says.

    A plan; paths in it are relative to it, and all but [boards] may be left out:

    \b
    firmware = "lamp-2.1.bundle"   # or an app, a merged firmware, a URL
    check = "sensors.ok()"         # health check: an expression, or a .py file
    check_timeout = 30             # seconds; also settle = 3
    keys = ["release.pub.pem"]     # public keys for the boards; also ca = "ca.pem"
    parts = ["listen"]             # of the ota package, besides the core
    parallel = 4                   # boards at a time
    stop_after = 1                 # failures
    secret = "board.secret"        # file: what boards that listen ask for
    [files]                        # path on the board = file here
    "/main.py" = "src/main.py"
    [boards]                       # name = port, or a table with its own settings
    north = "/dev/ttyUSB0"
    south = { port = "rfc2217://gateway:4000", check = "True" }
    attic = "tcp://attic.local"    # it listens: takes firmware, confirms it itself
    cellar = { port = "ble://cellar", secret = "cellar.secret" }
    """
    from mpota.commands._sending import outcomes
    from mpota.push.deploy import DeployPlan, deploy
    from mpota.push.known_apps import KnownApps

    known = KnownApps()
    with outcomes(as_json):
        read = DeployPlan.open(plan).with_options(find_base=known.find)
    if force:
        read = read.with_options(force=True)
    results = deploy(read, (lambda line: None) if as_json else report.say)
    for target, result in zip(read.targets, results, strict=True):
        if result.is_good and target.package:
            known.add(target.package.app)
    document = {"plan": plan.name} | to_document(results)
    if report_path is not None:
        write_file(report_path, json.dumps(document, indent=2).encode())
    if as_json:
        report.print_json(document)
    else:
        print_results(results)
    if not all(result.is_good for result in results):
        ctx.exit(1)
