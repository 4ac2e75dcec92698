"""Boards that a server is to let in, each by a token of its own."""

from __future__ import annotations

import secrets

from mpota.errors import MpotaError
from mpota.hawkbit.answers import Answer, TargetAnswer
from mpota.hawkbit.client import Client, ServerRefusedError, segment

TOKENS = "authentication.targettoken.enabled"


def add(client: Client, id: str) -> tuple[str, bool]:
    """The token of a board, and whether it is new there.

    Raises MpotaError if the server does not take the id, or does not tell a token.
    """
    body = [{"controllerId": id, "name": id, "securityToken": secrets.token_hex(16)}]
    is_new = True
    try:
        made = client.post("targets", body)
        found = made[0] if isinstance(made, list) and made else None
    except ServerRefusedError as error:
        if error.status != 409:
            raise
        is_new = False
        found = client.get(f"targets/{segment(id)}")
    target = TargetAnswer.of(found)
    if not target.token:
        raise MpotaError(
            f"{client.place.name}: it does not tell the token of '{id}'",
            "who asks needs the permission READ_TARGET_SECURITY_TOKEN",
        )
    return target.token, is_new


def allows_target_tokens(client: Client) -> bool:
    """Whether the tenant lets boards in by their tokens."""
    return Answer(client.get(f"system/configs/{TOKENS}"), "a setting").flag("value")


def allow_target_tokens(client: Client) -> None:
    """Have the tenant let boards in by their tokens from now on."""
    client.put(f"system/configs/{TOKENS}", {"value": True})
