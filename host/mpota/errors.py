"""The errors that mpota raises for what users give it.

Anything else that escapes a public function is a defect of mpota itself.
"""

from __future__ import annotations


class Again(str):
    """A hint to run the same command again: the command line adds what that is."""

    __slots__ = ()


class MpotaError(Exception):
    """The content is not acceptable (exit code 1).

    ``str(error)`` is one line that names the thing, the value found and the limit; ``details`` are
    further ones, such as those of a console; ``hint`` is what the user can do about it, or None.
    """

    exit_code = 1

    def __init__(
        self, message: str, hint: str | None = None, details: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message)
        self.hint = hint
        self.details = details


class UsageError(MpotaError):
    """The request itself makes no sense: a bad option, size or name (exit code 2)."""

    exit_code = 2
