"""``mpota rollout``: who gets a release in hawkBit, group after group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mpota.commands import _report as report
from mpota.commands._hawkbit import open_client
from mpota.commands._options import dry_run_option, json_option
from mpota.errors import MpotaError

if TYPE_CHECKING:
    from mpota.hawkbit.answers import Counts, GroupAnswer, RolloutAnswer
    from mpota.hawkbit.client import Client

_PERCENT = click.IntRange(0, 100)
_TONES = {
    "finished": report.Tone.GOOD,
    "running": report.Tone.GOOD,
    "error": report.Tone.BAD,
    "paused": report.Tone.CAUTION,
}
_target = click.argument("target")
_name = click.argument("name", required=False)


@click.group()
def command() -> None:
    """Rollouts in hawkBit: groups of boards, and what stops them.

    TARGET is hawkbit+https://HOST/TENANT, NAME a rollout there, the newest if it is left out.
    Credentials: MPOTA_HAWKBIT_USER and MPOTA_HAWKBIT_PASSWORD, MPOTA_HAWKBIT_TOKEN, or
    MPOTA_HAWKBIT_FILE, a file with USER:PASSWORD.
    """


@command.command()
@_target
@click.argument("release")
@click.option(
    "--groups",
    default="1,9",
    help="Percent of all boards, the rest is the last group (default 1,9); 5x: five equal ones.",
)
@click.option(
    "--next-at",
    type=_PERCENT,
    default=90,
    help="Percent of a group that must have it until the next one begins (default 90).",
)
@click.option(
    "--stop-above",
    type=_PERCENT,
    default=10,
    help="The rollout pauses if more percent of a group failed (default 10).",
)
@click.option(
    "--to",
    "boards",
    metavar="FILTER",
    help="Only these boards: a filter of hawkBit's, as in attribute.chip==esp32.",
)
@click.option(
    "--type",
    "kind",
    type=click.Choice(["forced", "soft", "downloadonly"]),
    default="forced",
    help="How boards are to take it (default forced); soft: at a good moment.",
)
@click.option("--name", help="The rollout's name (default: that of the release, with its version).")
@click.option("--start", "starts", is_flag=True, help="Start it, too.")
@dry_run_option
@json_option
def create(
    target: str,
    release: str,
    groups: str,
    next_at: int,
    stop_above: int,
    boards: str | None,
    kind: str,
    name: str | None,
    starts: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make a rollout of RELEASE, NAME:VERSION as mpota publish has brought it there.

    Until it is started nothing happens. The same command again finds the one that it made.
    """
    from mpota.hawkbit import rollouts

    product, version = rollouts.parse_set(release)
    wishes = rollouts.RolloutWishes(
        name or f"{product} {version}",
        rollouts.parse_groups(groups),
        next_at,
        stop_above,
        boards or rollouts.EVERY_BOARD,
        kind,
    )
    client = open_client(target)
    client.check_tenant()
    wanted = rollouts.find_set(client, product, version)
    if wanted is None:
        raise MpotaError(
            f"{client.place.name}: there is no '{release}'", "mpota publish brings it there"
        )
    if dry_run:
        shares = ", ".join(f"{share:g} %" for share in wishes.groups)
        report.say(f"rollout '{wishes.name}' of {release}: groups of {shares}")
        report.say("nothing is made yet")
        return
    with report.doing("the server divides the boards into groups"):
        made, is_new = rollouts.create(client, wanted, wishes)
        made = rollouts.wait_ready(client, made)
        if starts:
            made = rollouts.step(client, made, "start")
    if not as_json:
        report.say(f"rollout '{made.name}' is {'made' if is_new else 'there already'}")
    _show(client, made, as_json=as_json)
    if made.status == "ready" and not as_json:
        report.say(f"next: mpota rollout start {target}", is_whole=True)


def _step(verb: str) -> click.Command:
    @click.command(name=verb, help=_STEPS[verb])
    @_target
    @_name
    @json_option
    def step(target: str, name: str | None, as_json: bool) -> None:
        from mpota.hawkbit import rollouts

        client = open_client(target)
        client.check_tenant()
        found = rollouts.find_rollout(client, name)
        _show(client, rollouts.step(client, found, verb), as_json=as_json)

    return step


_STEPS = {
    "start": "Begin with the first group.",
    "pause": "Let no further group begin; boards that have begun go on.",
    "resume": "Go on after a pause, of somebody's or by failures: with the next group.",
    "stop": "End it for good: boards that have not installed it are told to leave it.",
}
for _verb in _STEPS:
    command.add_command(_step(_verb))


@command.command()
@_target
@_name
@json_option
def show(target: str, name: str | None, as_json: bool) -> None:
    """How far a rollout is, group by group."""
    from mpota.hawkbit import rollouts

    client = open_client(target)
    _show(client, rollouts.find_rollout(client, name), as_json=as_json)


@command.command(name="list")
@_target
@json_option
def list_(target: str, as_json: bool) -> None:
    """All rollouts, the newest first."""
    from mpota.hawkbit import rollouts

    found = list(rollouts.list_rollouts(open_client(target)))
    if as_json:
        report.print_json({"rollouts": [_to_json(one) for one in found]})
        return
    rows = [(one.name, _toned(one.status), *_numbers(one.total, one.counts)) for one in found]
    if rows:
        report.print_table(("Rollout", "State", *_COUNTS), rows)
    else:
        report.say("there is no rollout yet: mpota rollout create")


_COUNTS = (">Boards", ">Done", ">Failed", ">Begun", ">To come")


def _show(client: Client, found: RolloutAnswer, *, as_json: bool) -> None:
    from mpota.hawkbit import rollouts

    groups = rollouts.groups_of(client, found)
    if as_json:
        document = _to_json(found)
        report.print_json(document | {"groups": [_group_to_json(group) for group in groups]})
        return
    report.say(f"{found.name}: {_words(found.status)}, {found.total} boards")
    empty = [group.name for group in groups if not group.total]
    rows = [
        (group.name, _toned(group.status), *_numbers(group.total, group.counts)) for group in groups
    ]
    report.print_table(("Group", "State", *_COUNTS), rows)
    if empty and found.total:
        report.note(f"no board is in {', '.join(empty)}: the share is less than one")
    if groups:
        report.say(
            f"the next group begins at {groups[0].next_at} % done, "
            f"above {groups[0].stop_above} % failed it pauses"
        )
    failed = sum(group.counts.error for group in groups)
    if failed:
        what = f"{failed} board{'s' * (failed > 1)} failed"
        report.say(f"{what}: mpota fleet status {client.place.name} --only failed", is_whole=True)


def _numbers(total: int, counts: Counts) -> tuple[str, ...]:
    to_come = total - counts.finished - counts.error - counts.running - counts.cancelled
    return (
        str(total),
        str(counts.finished),
        report.Toned(str(counts.error), report.Tone.BAD) if counts.error else "0",
        str(counts.running),
        str(max(to_come, 0)),
    )


def _words(status: str) -> str:
    return status.replace("_", " ")


def _toned(status: str) -> str:
    tone = _TONES.get(status)
    return report.Toned(_words(status), tone) if tone else _words(status)


def _to_json(found: RolloutAnswer) -> dict[str, Any]:
    return {
        "id": found.id,
        "name": found.name,
        "status": found.status,
        "boards": found.total,
        "filter": found.filter,
        "type": found.kind,
        **_counts_to_json(found.counts),
    }


def _group_to_json(group: GroupAnswer) -> dict[str, Any]:
    return {
        "name": group.name,
        "status": group.status,
        "boards": group.total,
        "next_at": group.next_at,
        "stop_above": group.stop_above,
        **_counts_to_json(group.counts),
    }


def _counts_to_json(counts: Counts) -> dict[str, int]:
    return {
        "done": counts.finished,
        "failed": counts.error,
        "begun": counts.running,
        "cancelled": counts.cancelled,
        "to_come": counts.scheduled + counts.notstarted,
    }
