"""Which server and tenant, and who asks: ``hawkbit+https://[USER@]HOST[:PORT][/PATH]/TENANT``.

The password, or a token that the server's single sign-on gives, comes from the environment or from
a file: a command line is everybody's to read.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from mpota.errors import UsageError
from mpota.storage.file import MAX_SECRET_SIZE, read_credentials

SCHEMES = ("hawkbit+https", "hawkbit+http")
USER, PASSWORD, TOKEN = "MPOTA_HAWKBIT_USER", "MPOTA_HAWKBIT_PASSWORD", "MPOTA_HAWKBIT_TOKEN"
_FILE = "MPOTA_HAWKBIT_FILE"
_FORM = "hawkbit+https://HOST/TENANT"
_TENANT = re.compile(r"[A-Za-z0-9_.-]{1,40}")  # tenant names: at most 40 characters
_PATH = re.compile(r"(/[A-Za-z0-9_.~-]+)*")
_HOST = re.compile(r"[A-Za-z0-9_.:-]+")
HINT = f"{USER} and {PASSWORD}, {TOKEN}, or {_FILE} with USER:PASSWORD in it"


@dataclass(frozen=True)
class Place:
    """A tenant of a server. ``base``: what its URLs begin with, without a slash at the end."""

    base: str
    tenant: str
    user: str | None = None

    @property
    def name(self) -> str:
        """What people call it."""
        return f"hawkbit+{self.base}/{self.tenant}"

    @property
    def is_open(self) -> bool:
        """Whether the connection is unencrypted, so that others in the network can read it."""
        host = urlsplit(self.base).hostname or ""
        is_here = host in ("localhost", "::1") or host.startswith("127.")
        return self.base.startswith("http://") and not is_here


def is_hawkbit(target: str) -> bool:
    return target.partition("://")[0] in SCHEMES


def parse_place(target: str) -> Place:
    """Raises UsageError for what is no URL of a tenant."""
    scheme, _, rest = target.partition("://")
    if scheme not in SCHEMES:
        raise UsageError(f"'{target}' is no hawkBit server", _FORM)
    try:
        found = urlsplit(f"{scheme.removeprefix('hawkbit+')}://{rest}")
        port = found.port
    except ValueError:
        raise UsageError(f"'{target}' is no URL", _FORM) from None
    if found.password is not None:
        raise UsageError("a password has no place in a URL: others can see it", HINT)
    path, _, tenant = found.path.rstrip("/").rpartition("/")
    host = found.hostname or ""
    is_url = _HOST.fullmatch(host) and _PATH.fullmatch(path) and _TENANT.fullmatch(tenant)
    if not is_url or found.query or found.fragment:
        raise UsageError(f"'{target}' is not {_FORM}", "a new server's tenant is DEFAULT")
    host = f"[{host}]" if ":" in host else host
    where = host if port is None else f"{host}:{port}"
    return Place(f"{found.scheme}://{where}{path}", tenant, found.username)


@dataclass(frozen=True)
class Credentials:
    """What the server lets somebody in by: ``header`` is that of Authorization."""

    header: str = field(repr=False)

    @classmethod
    def find(cls, place: Place, environment: Mapping[str, str] = os.environ) -> Credentials:
        """Those of the environment, or of the file that it names. Raises UsageError."""
        if token := environment.get(TOKEN):
            if not token.isascii():
                raise UsageError(f"{TOKEN} has other characters than those of a token")
            return cls(_one_line(f"Bearer {token}", TOKEN))
        user, password = place.user or environment.get(USER), environment.get(PASSWORD)
        if name := environment.get(_FILE):
            named, password = read_credentials(name)
            user = place.user or named
        if not user or not password:
            raise UsageError(f"there are no credentials for {place.name}", HINT)
        return cls.of(user, password)

    @classmethod
    def of(cls, user: str, password: str) -> Credentials:
        """Raises UsageError unless both are a single line."""
        word = base64.b64encode(_one_line(f"{user}:{password}", PASSWORD).encode())
        return cls(f"Basic {word.decode()}")


def _one_line(text: str, name: str) -> str:
    if len(text) > MAX_SECRET_SIZE or not text.isprintable():
        raise UsageError(f"{name} is not one line of text")
    return text
