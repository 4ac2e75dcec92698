"""The outcome of an update in a word or two, and as JSON."""

from __future__ import annotations

from typing import Any

from mpota.errors import MpotaError, UsageError
from mpota.push.repl import LostBoardError, ScriptError
from mpota.push.update import (
    LostLinkError,
    Pushed,
    RefusedError,
    RolledBackError,
    UnconfirmedError,
    UnhealthyError,
)

UPDATED, UP_TO_DATE, NOT_STARTED = "updated", "up to date", "not started"
SENT = "sent"  # to a board that listens: it has verified and selected it, and is to confirm it
INTERRUPTED = "interrupted"

# An error has the outcome of the first class that it is an instance of.
_OF_ERRORS: tuple[tuple[type[MpotaError], str], ...] = (
    (UnhealthyError, "unhealthy"),
    (RolledBackError, "rolled back"),
    (UnconfirmedError, "unconfirmed"),
    (RefusedError, "refused"),
    (LostBoardError, "no answer"),
    (LostLinkError, "no answer"),
    (UsageError, "wrong usage"),
    (ScriptError, "failed"),
    (MpotaError, "failed"),
)


def outcome_of(error: MpotaError) -> str:
    return next(name for kind, name in _OF_ERRORS if isinstance(error, kind))


def of_pushed(done: Pushed) -> str:
    if done.board is not None and not done.is_confirmed:
        return SENT
    return UPDATED if done.is_new else UP_TO_DATE


def pushed_to_json(done: Pushed) -> dict[str, Any]:
    """A completed update as JSON."""
    found: dict[str, Any] = {
        "outcome": of_pushed(done),
        "version": done.version,
        "sent": done.sent_size,
    }
    if done.board is not None:
        return found | {
            "board": done.board.version,
            "needs_restart": done.needs_restart,
            "confirmed": done.is_confirmed,
            "connections": done.connections,
        }
    return found | {
        "slot": done.slot,
        "new": done.is_new,
        "app": done.is_app,
        "console": done.console,
    }


def error_to_json(error: MpotaError) -> dict[str, Any]:
    """An update that failed as JSON. ``code`` is the board's word for a refusal."""
    return {
        "outcome": outcome_of(error),
        "code": error.code if isinstance(error, RefusedError) else None,
        "message": str(error),
        "details": list(error.details),
        "hint": error.hint,
        "exit_code": error.exit_code,
    }
