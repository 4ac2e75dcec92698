"""What goes wrong between a device and the server: answers that are lost, refused or cut short."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase


@dataclass
class Fault:
    """What happens to the next ``times`` requests that ``match``, and nothing to those after.

    ``match``: a pattern of the method and of what follows the controllerId in the path, as
    ``POST /deploymentBase/*/feedback``; the poll is ``GET /``. One of

    ``status``: this answer, with ``headers`` and ``body``, and nothing is done
    ``is_lost``: it is done, and the connection ends without an answer
    ``is_unheard``: the connection ends, and nothing is done
    ``cut``: the connection ends after so many bytes of a body
    ``call``: it is called, and then the request is answered as ever
    """

    match: str
    times: int = 1
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_lost: bool = False
    is_unheard: bool = False
    cut: int | None = None
    call: Callable[[], object] | None = None


class Faults(list[Fault]):
    """The faults that are still to come; the first that matches a request strikes."""

    def take(self, method: str, path: str) -> Fault | None:
        for fault in self:
            if fnmatchcase(f"{method} {path}", fault.match):
                fault.times -= 1
                if fault.times <= 0:
                    self.remove(fault)
                return fault
        return None


@dataclass(frozen=True)
class Exchange:
    """One request and its answer. ``path``: what follows the controllerId, with the query.

    ``authorization``: the header, None without. ``status`` 0: no answer. ``size``: bytes of the
    answer's body; of a body that was cut, as far as it went.
    """

    id: str
    method: str
    path: str
    status: int
    authorization: str | None = None
    range: str | None = None
    body: bytes = b""
    size: int = 0

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.status}"
