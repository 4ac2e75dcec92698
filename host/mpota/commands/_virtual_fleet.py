"""``mpota virtual --fleet``: many boards, which follow a server or a broker."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mpota.commands import _report as report
from mpota.errors import UsageError

if TYPE_CHECKING:
    from mpota.hawkbit.client import Client

MAX_FLEET = 200  # each is a process of MicroPython, and has threads here


def run_fleet(
    folder: Path,
    count: int,
    server: str | None,
    firmware: Path | None,
    keys: tuple[Path, ...],
    main: Path | None,
    parts: tuple[str, ...],
    catch_end: Callable[[], int],
) -> None:
    """Make what is missing of the boards in ``folder``, and power them until something can be read
    from what ``catch_end`` gives, a file descriptor.

    Raises UsageError for what cannot go together.
    """
    from mpota.fleet.virtual_boards import Recipe, board_ids, prepare, read_files
    from mpota.push.enrol import PART
    from mpota.release.ota_package import modules_of

    parts = parts or (PART,)
    modules_of(parts)  # raises for an unknown part
    is_own = PART not in parts
    if is_own and (main is None or server is not None):
        raise UsageError(
            "without the part ddi boards follow no hawkBit", "--main with a program, no --follow"
        )
    files = read_files(main)
    recipe = None if firmware is None else Recipe(firmware, keys, parts, files)
    if is_own:
        paths = prepare(folder, board_ids(count), recipe, None, report.say)
        _power(folder, paths, f"run {main}", catch_end)
        return
    from mpota.hawkbit import targets
    from mpota.push.enrol import Enrolment

    with _followed(server) as client:
        place = client.place

        def enrolled(id: str) -> Enrolment:
            return Enrolment(place.base, place.tenant, id, targets.add(client, id)[0])

        paths = prepare(folder, board_ids(count), recipe, enrolled, report.say)
        if not targets.allows_target_tokens(client):
            report.note(f"{place.name} lets no board in by its token: fleet add --allow-tokens")
        _power(folder, paths, f"follow {place.name}", catch_end)


def _power(folder: Path, paths: dict[str, Path], what: str, catch_end: Callable[[], int]) -> None:
    from mpota.fleet.virtual_boards import powered

    with powered(paths) as ports:
        end = catch_end()
        report.say(f"{len(ports)} boards {what}; Ctrl-C ends it")
        report.say(f"REPL of each: {folder}/{next(iter(ports))}.repl, ...")
        os.read(end, 1)
        report.say()
        report.say("off")


@contextmanager
def _followed(server: str | None) -> Iterator[Client]:
    """The server that was given, else a stand-in."""
    from mpota.commands._hawkbit import open_client
    from mpota.fleet.virtual_boards import stand_in
    from mpota.hawkbit.client import Client
    from mpota.hawkbit.place import Credentials, parse_place

    if server is not None:
        client = open_client(server)
        client.check_tenant()
        yield client
        return
    with stand_in() as url:
        place = parse_place(f"hawkbit+{url}/DEFAULT")
        yield Client(place, Credentials.of("admin", "admin"))
