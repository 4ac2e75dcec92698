"""The sources of boards, chosen by name: the scheme of a URL, or a plan of mpota deploy."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from mpota.fleet.row import BoardSource
from mpota.hawkbit.place import SCHEMES


def open_source(target: str) -> AbstractContextManager[BoardSource]:
    """The source that ``target`` names. Raises UsageError if it can be none."""
    scheme = target.partition("://")[0] if "://" in target else ""
    return _OPEN.get(scheme, _plan)(target)


def _hawkbit(target: str) -> AbstractContextManager[BoardSource]:
    from mpota.fleet.hawkbit import HawkbitSource
    from mpota.hawkbit.client import Client
    from mpota.hawkbit.place import Credentials, parse_place

    place = parse_place(target)
    client = Client(place, Credentials.find(place))
    client.check_tenant()
    return nullcontext(HawkbitSource(client))


def _mqtt(target: str) -> AbstractContextManager[BoardSource]:
    from mpota.fleet.mqtt import open_broker, parse_broker

    return open_broker(parse_broker(target))


def _plan(target: str) -> AbstractContextManager[BoardSource]:
    from mpota.fleet.plan import PlanSource

    return nullcontext(PlanSource.open(target))


_OPEN: dict[str, Callable[[str], AbstractContextManager[BoardSource]]] = {
    **dict.fromkeys(SCHEMES, _hawkbit),
    **dict.fromkeys(("mqtt", "mqtts"), _mqtt),
}
