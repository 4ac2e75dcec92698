"""A channel as boards see it: by its URL, on whatever server."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from mpota.errors import MpotaError, UsageError
from mpota.formats.channel import CHANNEL_SUFFIX, Channel
from mpota.formats.signature import PublicKey
from mpota.publish.channels import MAX_FILE
from mpota.release.signing import check_line

DEFAULT_CHANNEL = "stable"
_PATIENCE_S = 30


@dataclass(frozen=True)
class Followed:
    """``directory``: the URL that boards are given, ``channel``: what is there at present."""

    directory: str
    channel: Channel


def find_channel(url: str, trusted: Iterable[PublicKey], ca: Path | None = None) -> Followed:
    """The channel that a URL means: of a directory, where it is "stable", or of its file.

    ``ca``: PEM or DER of who vouches for the server, else the roots of this machine do. Raises
    UsageError for what is no such URL and a server that does not give it, MpotaError for what is no
    channel that one of ``trusted`` has signed.
    """
    directory, name = _split(url)
    place = f"{directory}/{name}{CHANNEL_SUFFIX}"
    line, _ = check_line(_fetch(place, ca), trusted, "channel file")
    channel = Channel.from_line(line)
    if channel.channel != name:
        raise MpotaError(f"{place} is the channel '{channel.channel}', put there by a wrong name")
    return Followed(directory, channel)


def _split(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise UsageError(f"'{url}' is no URL of a channel", "http://HOST/DIR, or DIR/NAME.channel")
    directory, _, last = url.rstrip("/").rpartition("/")
    if parts.path.endswith(CHANNEL_SUFFIX):
        return directory.rstrip("/"), last.removesuffix(CHANNEL_SUFFIX)
    return url.rstrip("/"), DEFAULT_CHANNEL


def _fetch(url: str, ca: Path | None) -> bytes:
    context = ssl.create_default_context()
    try:
        if ca is not None:
            data = ca.read_bytes()
            is_pem = data.lstrip().startswith(b"-----")
            context.load_verify_locations(cadata=data.decode("ascii") if is_pem else data)
        with urllib.request.urlopen(url, timeout=_PATIENCE_S, context=context) as answer:
            found: bytes = answer.read(MAX_FILE + 1)
    except urllib.error.HTTPError as error:
        raise UsageError(f"{url}: the server says {error.code}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise UsageError(f"{url}: {reason}") from None
    if len(found) > MAX_FILE:
        raise MpotaError(f"{url} has more than {MAX_FILE:,} bytes")
    return found
