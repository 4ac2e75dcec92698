"""``mpota deploy``: many boards by one plan."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mpota.commands import _report as report
from mpota.commands._options import json_option
from mpota.storage.file import write_file

if TYPE_CHECKING:
    from mpota.push.deploy import Result


@click.command()
@click.argument("plan", type=click.Path(path_type=Path))
@json_option
@click.option(
    "--report",
    "report_path",
    type=click.Path(path_type=Path),
    help="Write the JSON report to this file as well.",
)
@click.pass_context
def command(ctx: click.Context, plan: Path, as_json: bool, report_path: Path | None) -> None:
    """Bring all boards of PLAN (TOML) to the ota package, keys, files and firmware it names.

    A board's port is whatever `mpota push` takes. Boards are done in parallel; after as many
    failures as the plan allows no other begins. Run again, it does only what is missing, but boards
    that listen are sent all of it. Exit code 1 if a board is not what the plan says.
    """
    from mpota.push.deploy import DeployPlan, deploy

    results = deploy(DeployPlan.open(plan), (lambda line: None) if as_json else report.say)
    document = _document(plan, results)
    if report_path is not None:
        write_file(report_path, json.dumps(document, indent=2).encode())
    if as_json:
        report.print_json(document)
    else:
        _print_table(results)
    if not all(result.is_good for result in results):
        ctx.exit(1)


def _document(plan: Path, results: Iterable[Result]) -> dict[str, object]:
    return {"plan": plan.name, "boards": [result.to_json() for result in results]}


def _print_table(results: tuple[Result, ...]) -> None:
    columns = ("Board", "Port", "Outcome", "Version", ">Seconds", "What changed")
    report.print_table(
        columns,
        (
            (
                result.name,
                result.port,
                result.outcome,
                result.version or "-",
                f"{result.seconds:.1f}",
                "; ".join(result.changes) or "-",
            )
            for result in results
        ),
    )
    counts = Counter(result.outcome for result in results)
    report.say(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
