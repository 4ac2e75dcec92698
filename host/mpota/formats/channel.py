"""The channel file: which releases the boards of a channel take, signed, in static files.

A line of JSON, then one to three signature blocks: docs/channel_file.md has the layout to the byte,
the fields with their limits, and the reasons. What is read here is what a board reads
(``device/ota/channel_file.py``): it refuses the same.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from mpota.errors import MpotaError
from mpota.formats.chips import CHIPS
from mpota.formats.fields import (
    BOARD,
    DIGEST,
    MAX_NUMBER,
    NAME,
    TIME,
    VERSION,
    Fields,
    Rule,
    load_object,
    present,
)
from mpota.formats.manifest import MAX_SIZE as MAX_MANIFEST
from mpota.formats.signature import (
    BLOCK_SIZE,
    MAX_BLOCKS,
    SignatureBlock,
    compose_sector,
    padded,
)

FORMAT = 1
CHANNEL_SUFFIX = ".channel"
FRESH_SUFFIX = ".fresh"
MAX_LINE_SIZE = 8192  # bytes of a channel's JSON with its newline
MAX_FRESH_LINE = 1024
MAX_ENTRIES = 16
SHARES = 10000  # all boards
PAUSED = "paused"
WITHDRAWN = "withdrawn"
DEFAULT_POLL = 3600
POLL_RANGE = (60, 86400)
MAX_SPREAD = 30 * 86400

_CHANNEL = Rule(
    re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}"),
    "1 to 32 letters, digits, '.', '_' and '-', first a letter or digit",
)
_MANIFEST_URL = Rule(
    re.compile(r"[!-~]{1,250}\.json"), "up to 255 characters of ASCII without blanks, last .json"
)
_SALT = Rule(re.compile(r"[ -~]{1,64}"), "1 to 64 characters of ASCII")
_STATE = Rule(re.compile(f"{PAUSED}|{WITHDRAWN}"), f"{PAUSED!r} or {WITHDRAWN!r}")
_YEARS = range(2000, 2100)  # that boards count in
_TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True)
class ChannelEntry:
    """One release for one kind of hardware. ``sha256`` and ``size`` are those of the manifest."""

    version: str
    counter: int
    manifest: str
    size: int
    sha256: str
    chip: str | None = None
    board: str | None = None
    from_version: str | None = None
    share: int = SHARES
    salt: str | None = None
    begins: datetime | None = None
    spread: int = 0
    state: str | None = None

    def bucket(self, unique_id: bytes) -> int:
        """0 to 9999: a board with this ``machine.unique_id()`` is in where it is below `share`."""
        return int.from_bytes(self._hash(unique_id)[:4], "big") % SHARES

    def delay(self, unique_id: bytes) -> int:
        """Seconds after `begins` at which that board starts."""
        second = int.from_bytes(self._hash(unique_id)[4:8], "big")
        return second % self.spread if self.spread else 0

    def _hash(self, unique_id: bytes) -> bytes:
        salt = self.sha256 if self.salt is None else self.salt
        return hashlib.sha256(salt.encode() + b"\0" + unique_id).digest()


@dataclass(frozen=True)
class Channel:
    """What the line says. Times are in UTC, whole seconds; ``fresh_key`` is a digest in hex."""

    name: str
    channel: str
    serial: int
    issued: datetime
    expires: datetime
    releases: tuple[ChannelEntry, ...] = ()
    poll: int = DEFAULT_POLL
    fresh_key: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)  # fields that start with x-

    @classmethod
    def from_line(cls, line: bytes) -> Channel:
        """Raises MpotaError, naming the field, for anything that a board would refuse."""
        document = load_object(line, MAX_LINE_SIZE, "channel file")
        fields = _head(document, "channel")
        low, high = POLL_RANGE
        found = cls(
            name=fields.text("name", NAME),
            channel=fields.text("channel", _CHANNEL),
            serial=fields.number("serial", 1, MAX_NUMBER),
            issued=_time(fields, "issued"),
            expires=_time(fields, "expires"),
            releases=tuple(
                _parse_entry(item, f"channel file, release {index}")
                for index, item in enumerate(fields.take("releases", list))
            ),
            poll=fields.number("poll", low, high, DEFAULT_POLL),
            fresh_key=fields.optional_text("fresh_key", DIGEST),
            extra={key: value for key, value in document.items() if key.startswith("x-")},
        )
        fields.end()
        found.check()
        return found

    def check(self) -> None:
        """Raises MpotaError if the fields contradict each other."""
        _check_times("channel file", self.issued, self.expires)
        if len(self.releases) > MAX_ENTRIES:
            raise MpotaError(
                f"channel file has {len(self.releases)} releases, at most {MAX_ENTRIES}"
            )
        kinds = [(entry.counter, entry.chip, entry.board) for entry in self.releases]
        for kind in kinds:
            if kinds.count(kind) > 1:
                raise MpotaError(
                    f"channel file has two releases with counter {kind[0]} for the same hardware"
                )

    def to_line(self) -> bytes:
        """JSON on one line. Raises MpotaError if a board would refuse it."""
        document: dict[str, Any] = {
            "format": FORMAT,
            "type": "channel",
            "name": self.name,
            "channel": self.channel,
            "serial": self.serial,
            "issued": format_time(self.issued),
            "expires": format_time(self.expires),
            "poll": self.poll,
        }
        document |= present(fresh_key=self.fresh_key)
        document["releases"] = [_compose_entry(entry) for entry in self.releases]
        line = _compose_line(document | self.extra)
        Channel.from_line(line)
        return line


@dataclass(frozen=True)
class Fresh:
    """The fresh file of a channel: that one file, known by its digest, is current until `expires`.

    It is short-lived and signed by a key of its own, on a machine that is online, which can say
    nothing else. A line of JSON, at most 1024 bytes, and signature blocks as a channel file has
    them; ``type`` is "fresh", ``name``, ``channel``, ``serial`` and ``sha256`` (its digest) are
    those of the channel file, ``issued`` and ``expires`` its own.
    """

    name: str
    channel: str
    serial: int
    sha256: str
    issued: datetime
    expires: datetime

    @classmethod
    def from_line(cls, line: bytes) -> Fresh:
        """Raises MpotaError, naming the field, for anything that a board would refuse."""
        fields = _head(load_object(line, MAX_FRESH_LINE, "fresh file"), "fresh")
        found = cls(
            name=fields.text("name", NAME),
            channel=fields.text("channel", _CHANNEL),
            serial=fields.number("serial", 1, MAX_NUMBER),
            sha256=fields.text("sha256", DIGEST),
            issued=_time(fields, "issued"),
            expires=_time(fields, "expires"),
        )
        fields.end()
        _check_times("fresh file", found.issued, found.expires)
        return found

    def to_line(self) -> bytes:
        """JSON on one line. Raises MpotaError if a board would refuse it."""
        line = _compose_line(
            {
                "format": FORMAT,
                "type": "fresh",
                "name": self.name,
                "channel": self.channel,
                "serial": self.serial,
                "sha256": self.sha256,
                "issued": format_time(self.issued),
                "expires": format_time(self.expires),
            }
        )
        Fresh.from_line(line)
        return line


@dataclass(frozen=True)
class SignedLine:
    """A channel or fresh file as it is published: the line and who signed it.

    Signing and verifying are in release/signing.py (`sign_line`, `check_line`).
    """

    line: bytes
    blocks: tuple[SignatureBlock, ...]

    @classmethod
    def from_bytes(cls, data: bytes, what: str = "channel file") -> SignedLine:
        """Raises MpotaError, naming ``what``, unless it is a line with one to three intact blocks.

        It says nothing of the line's fields, nor of whose signatures these are.
        """
        start, newline, rest = data.partition(b"\n")
        if not start.startswith(b"{") or not newline:
            raise MpotaError(f"{what} does not start with a line of JSON")
        line = start + newline
        if len(line) > MAX_LINE_SIZE:
            raise MpotaError(f"{what} has a line of {len(line):,} bytes, at most {MAX_LINE_SIZE:,}")
        sizes = [count * BLOCK_SIZE for count in range(1, MAX_BLOCKS + 1)]
        if len(rest) not in sizes:
            raise MpotaError(
                f"{what} has {len(rest):,} bytes behind its line, 1 to {MAX_BLOCKS} signatures of "
                f"{BLOCK_SIZE:,} are due"
            )
        pieces = (rest[at : at + BLOCK_SIZE] for at in range(0, len(rest), BLOCK_SIZE))
        return cls(line, tuple(SignatureBlock.from_bytes(piece) for piece in pieces))

    def to_bytes(self) -> bytes:
        return self.line + b"".join(block.to_bytes() for block in self.blocks)

    def check(self) -> None:
        """Raises MpotaError if a signature is that of another line."""
        for block in self.blocks:
            if block.content_digest != self.digest:
                raise MpotaError(
                    f"signature of key {block.key.digest.hex()[:16]} belongs to other content"
                )

    @property
    def digest(self) -> bytes:
        return line_digest(self.line)

    @property
    def sector(self) -> bytes:
        """The blocks as the signature of a manifest has them."""
        return compose_sector(self.blocks)


def line_digest(line: bytes) -> bytes:
    """What a signature covers: the SHA-256 of the line, filled with 0xFF to whole sectors."""
    return hashlib.sha256(padded(line)).digest()


def check_name(text: str) -> str:
    """The name of a channel. Raises MpotaError if it is none."""
    return Fields({"name": text}, "channel").text("name", _CHANNEL)


def format_time(time: datetime) -> str:
    return time.astimezone(timezone.utc).strftime(_TIME_FORMAT)


def parse_time(text: str) -> datetime:
    """Raises ValueError."""
    return datetime.strptime(text, _TIME_FORMAT).replace(tzinfo=timezone.utc)


def _head(document: dict[str, Any], kind: str) -> Fields:
    """The fields of a file of this type, without those that say so."""
    fields = Fields(document, f"{kind} file")
    found = fields.take("type", str)
    if found != kind:
        fields.fail("type", found, repr(kind))
    number = fields.number("format", 1, MAX_NUMBER)
    if number > FORMAT:
        raise MpotaError(
            f"{kind} file has format {number}, this is mpota for format {FORMAT}",
            "pip install --upgrade mpota",
        )
    return fields


def _time(fields: Fields, key: str) -> datetime:
    text = fields.text(key, TIME)
    try:
        time = parse_time(text)
    except ValueError:
        time = None
    if time is None or time.year not in _YEARS:
        fields.fail(key, text, f"{TIME.words}, from {_YEARS[0]} to {_YEARS[-1]}")
    return time


def _check_times(what: str, issued: datetime, expires: datetime) -> None:
    if expires <= issued:
        raise MpotaError(
            f"{what} expires on {format_time(expires)}, it was issued on {format_time(issued)}"
        )


def _parse_entry(item: Any, what: str) -> ChannelEntry:
    fields = Fields(item, what)
    entry = ChannelEntry(
        version=fields.text("version", VERSION),
        counter=fields.number("counter", 1, MAX_NUMBER),
        manifest=fields.text("manifest", _MANIFEST_URL),
        size=fields.number("size", 1, MAX_MANIFEST),
        sha256=fields.text("sha256", DIGEST),
        chip=fields.optional_text("chip", NAME),
        board=fields.optional_text("board", BOARD),
        from_version=fields.optional_text("from", VERSION),
        share=fields.number("share", 0, SHARES, SHARES),
        salt=fields.optional_text("salt", _SALT),
        begins=_time(fields, "begins") if "begins" in fields.found else None,
        spread=fields.number("spread", 0, MAX_SPREAD, 0),
        state=fields.optional_text("state", _STATE),
    )
    fields.end()
    names = [chip.name for chip in CHIPS]
    if entry.chip is not None and entry.chip not in names:
        raise MpotaError(f"{what} is for chip '{entry.chip}', known are {', '.join(names)}")
    return entry


def _compose_entry(entry: ChannelEntry) -> dict[str, Any]:
    document: dict[str, Any] = {"version": entry.version, "counter": entry.counter}
    document |= present(chip=entry.chip, board=entry.board)
    document |= {"manifest": entry.manifest, "size": entry.size, "sha256": entry.sha256}
    return document | present(
        **{"from": entry.from_version},
        share=entry.share if entry.share != SHARES else None,
        salt=entry.salt,
        begins=None if entry.begins is None else format_time(entry.begins),
        spread=entry.spread or None,
        state=entry.state,
    )


def _compose_line(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"
