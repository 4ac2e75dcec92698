"""What the commands that talk to a hawkBit server have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpota.commands import _report as report

if TYPE_CHECKING:
    from mpota.hawkbit.client import Client


def open_client(target: str) -> Client:
    """The Management API of ``hawkbit+https://HOST/TENANT``. Raises UsageError without
    credentials.
    """
    from mpota.hawkbit.client import Client
    from mpota.hawkbit.place import Credentials, parse_place

    place = parse_place(target)
    client = Client(place, Credentials.find(place))
    if place.is_open:
        report.note(f"{place.name}: without TLS others can read the credentials", error=True)
    return client
