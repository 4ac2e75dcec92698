"""The manifest of a release: what an update consists of and which boards it is for.

A JSON object in UTF-8, at most 8 KiB, without duplicate keys and without numbers that are no
integers. Fields that this table does not have are refused, but for those that start with ``x-``,
which are ignored: a later meaning needs a later ``format``::

    format        1; 2 where something below is marked so, and then with
    ota           the oldest version of the board's package that reads it: 0.2.0
    name          the product; a board takes only releases of the name that it has installed
    version       of the release: 2.1.0, or 2.1.0-rc1 for what comes before it
    chip          esp32, esp32s3, ...; required where there is an app payload
    board         optional: sys.implementation._machine of the boards it is for, or its part
                  before " with " ("Generic ESP32S3 module")
    from_version  optional: the oldest installed version that may be updated to this one
    counter       optional, 0: a board refuses a lower counter than that of the last release that
                  was confirmed on it
    allow_downgrade  optional, format 2: true where the version may be lower than the one that was
                  confirmed last
    expires       optional: no board installs it from this time on, 2027-01-31T00:00:00Z
    x-mpy         optional: which .mpy files are among the files, as sys.implementation._mpy tells
                  what a board loads: version | sub-version << 8 | architecture << 10, or the
                  version alone if none has native code. Where there is no app payload, which
                  might bring another MicroPython, a board that loads others refuses the release
                  before it writes; up to 0.2.0 it is ignored
    payloads      see below, in the order in which a board takes them
    keys          optional: {"add": [digest...], "retire": [digest...]}, changes to the trusted
                  keys when the release is confirmed; at once if it has no payloads. The counter
                  has to be above that of the last release that was confirmed, and none of the
                  keys may have been retired before

A payload says what a board will have, and where its bytes are::

    kind          app: an app image, for the next OTA slot
                  files: a directory tree as ustar, beside the running one
                  certs: CA certificates in PEM or DER
                  data: the content of a data partition; these come last, since they are
                  written in place
    size, sha256  of the content, whole and decoded
    partition     data: the label
    disk          files: bytes of file system that the tree takes, files rounded up to blocks
    member | url  the content as it is: a member of the bundle, or a URL, relative to the
                  manifest's own
    encoded       optional: a list of other forms of the same content, each with
                  encoding ("deflate": frames of raw deflate; "delta": a difference),
                  size and sha256 of the encoded bytes, member | url, and for a delta "from", the
                  SHA-256 of the content that it starts from. For data in format 2 also "chained"
                  and "chained-deflate" (formats/chain.py) with "chain", the first link: a board
                  that has keys takes no other

A board takes the smallest form that it can use, so that one bundle may carry a full image and
several differences. What a signature covers are the bytes of ``manifest.json`` as they stand in
the bundle, padded with 0xFF to a multiple of 4 KiB (formats/signature.py).

The JSON of ``micropython-esp32-ota`` (``firmware``, ``sha``, ``length``) is read as a manifest
with one app payload.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from mpota.errors import MpotaError
from mpota.formats.chain import check_size
from mpota.formats.chips import CHIPS
from mpota.formats.fields import (
    BOARD,
    DIGEST,
    MAX_NUMBER,
    NAME,
    TIME,
    URL,
    VERSION,
    Fields,
    Rule,
    load_object,
    present,
)
from mpota.formats.payloads import APP, KINDS, PayloadKind

FORMAT = 2
OTA_VERSION = "0.2.0"  # the oldest package on a board that reads format 2
MAX_SIZE = 8192
MAX_PAYLOADS = 8
MAX_COUNTER = MAX_NUMBER
MAX_MPY = 0x3FFF  # version, sub-version and architecture, without flags
MAX_KEYS = 3  # trusted at a time: as many as Secure Boot V2 has

CHAINED = ("chained", "chained-deflate")


_MEMBER = Rule(
    re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,98}"),
    "1 to 99 letters, digits, '.', '_' and '-', first a letter or digit",
)
_LABEL = Rule(re.compile(r"[!-~]{1,15}"), "1 to 15 characters of ASCII without blanks")
_ENCODING = Rule(
    re.compile(r"[a-z][a-z0-9-]{0,15}"), "1 to 16 small letters, digits and '-', first a letter"
)


@dataclass(frozen=True)
class Form:
    """Bytes that give a payload: as they are (``encoding`` None), or encoded.

    ``size`` and ``sha256`` (hexadecimal) are those of the bytes that are stored or sent. Exactly
    one of ``member`` and ``url`` is set. ``base`` is the SHA-256 that a delta starts from,
    ``chain`` the first link of a chained stream.
    """

    size: int
    sha256: str
    member: str | None = None
    url: str | None = None
    encoding: str | None = None
    base: str | None = None
    chain: str | None = None

    def check(self, data: bytes, what: str) -> None:
        """Raises MpotaError, naming ``what``, unless ``data`` are these bytes."""
        if len(data) != self.size:
            raise MpotaError(f"{what} is {len(data):,} bytes, its manifest says {self.size:,}")
        found = hashlib.sha256(data).hexdigest()
        if found != self.sha256:
            raise MpotaError(
                f"{what} has SHA-256 {found[:16]}..., its manifest says {self.sha256[:16]}..."
            )


@dataclass(frozen=True)
class Payload:
    """``size`` and ``sha256`` are those of the content; ``forms`` in the order of a bundle."""

    kind: str
    size: int
    sha256: str
    forms: tuple[Form, ...]
    partition: str | None = None
    disk: int | None = None


@dataclass(frozen=True)
class Manifest:
    """See the module's text. ``add_keys`` and ``retire_keys`` are key digests in hex."""

    name: str
    version: str
    payloads: tuple[Payload, ...] = ()
    chip: str | None = None
    board: str | None = None
    from_version: str | None = None
    counter: int = 0
    expires: str | None = None
    add_keys: tuple[str, ...] = ()
    retire_keys: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)  # fields that start with x-
    allow_downgrade: bool = False
    mpy: int = 0

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Raises MpotaError, naming the field, for anything that a board would refuse."""
        document = load_object(data, MAX_SIZE, "manifest")
        if {"firmware", "sha", "length"} <= document.keys():
            return _from_simple(document)
        fields = _Fields(document, "manifest")
        number = fields.number("format", 1, MAX_COUNTER)
        if number > 1:
            _check_format(number, fields)
        keys = _Fields(fields.take("keys", dict, {}), "manifest: keys")
        manifest = cls(
            name=fields.text("name", NAME),
            version=fields.text("version", VERSION),
            payloads=tuple(
                _parse_payload(item, f"payload {index}", number)
                for index, item in enumerate(fields.take("payloads", list))
            ),
            chip=fields.optional_text("chip", NAME),
            board=fields.optional_text("board", BOARD),
            from_version=fields.optional_text("from_version", VERSION),
            counter=fields.number("counter", 0, MAX_COUNTER, 0),
            expires=fields.optional_text("expires", TIME),
            add_keys=keys.digests("add"),
            retire_keys=keys.digests("retire"),
            mpy=fields.number("x-mpy", 0, MAX_MPY, 0),
            extra={key: value for key, value in fields.found.items() if key.startswith("x-")},
            allow_downgrade=number > 1 and fields.take("allow_downgrade", bool, False),
        )
        keys.end()
        fields.end()
        manifest.check()
        return manifest

    def check(self) -> None:
        """Raises MpotaError if the fields contradict each other."""
        if len(self.payloads) > MAX_PAYLOADS:
            raise MpotaError(f"manifest has {len(self.payloads)} payloads, at most {MAX_PAYLOADS}")
        if not self.payloads and not self.add_keys and not self.retire_keys:
            raise MpotaError("manifest has no payloads and changes no keys")
        names = [chip.name for chip in CHIPS]
        if self.chip is not None and self.chip not in names:
            raise MpotaError(f"manifest is for chip '{self.chip}', known are {', '.join(names)}")
        self._check_kinds([KINDS[payload.kind] for payload in self.payloads])
        members = [form.member for form in self.forms if form.member]
        if len(set(members)) < len(members):
            raise MpotaError("manifest names a member twice")
        if set(self.add_keys) & set(self.retire_keys):
            raise MpotaError("manifest adds and retires the same key")

    def _check_kinds(self, kinds: list[PayloadKind]) -> None:
        for kind in KINDS.values():
            count = kinds.count(kind)
            if kind.is_single and count > 1:
                raise MpotaError(f"manifest has {count} {kind.name} payloads, at most one")
            if count and kind.needs_chip and self.chip is None:
                raise MpotaError(f"manifest has an {kind.name} payload and no chip")
        for earlier, later in pairwise(kinds):
            if earlier.has_partition and not later.has_partition:
                raise MpotaError(f"manifest has a {later.name} payload behind {earlier.name}")
        labels = [payload.partition for payload in self.payloads if payload.partition is not None]
        if len(set(labels)) < len(labels):
            raise MpotaError("manifest has two data payloads for one partition")

    @property
    def forms(self) -> tuple[Form, ...]:
        """All forms of all payloads, in the order in which they stand in a bundle."""
        return tuple(form for payload in self.payloads for form in payload.forms)

    @property
    def format(self) -> int:
        """The lowest that has what this manifest says."""
        return 2 if self.allow_downgrade or any(form.chain for form in self.forms) else 1

    def to_bytes(self) -> bytes:
        """JSON for boards and people. Raises MpotaError if a board would refuse it."""
        document: dict[str, Any] = {"format": self.format}
        if self.format > 1:
            document["ota"] = OTA_VERSION
        document |= {"name": self.name, "version": self.version} | present(
            chip=self.chip,
            board=self.board,
            from_version=self.from_version,
            counter=self.counter or None,
            allow_downgrade=self.allow_downgrade or None,
            expires=self.expires,
        )
        document["payloads"] = [_compose_payload(payload) for payload in self.payloads]
        keys = present(add=list(self.add_keys) or None, retire=list(self.retire_keys) or None)
        document |= present(keys=keys or None, **{"x-mpy": self.mpy or None}) | self.extra
        data = json.dumps(document, indent=1).encode() + b"\n"
        Manifest.from_bytes(data)
        return data


def _check_format(number: int, fields: _Fields) -> None:
    """Raises MpotaError for a manifest that only a later version reads."""
    needs = fields.optional_text("ota", VERSION)
    if number > FORMAT or needs is None or version_key(needs) > version_key(OTA_VERSION):
        if number == FORMAT and needs is None:
            raise MpotaError(f"manifest of format {number} has no 'ota'")
        raise MpotaError(
            f"manifest has format {number} for ota {needs or 'of a later version'}, this is mpota "
            f"for format {FORMAT} and ota {OTA_VERSION}",
            "pip install --upgrade mpota",
        )


def _parse_payload(item: Any, what: str, number: int) -> Payload:
    fields = _Fields(item, what)
    name = fields.take("kind", str)
    if name not in KINDS:
        raise MpotaError(f"{what} is of kind {name!r}, known are {', '.join(KINDS)}")
    kind = KINDS[name]
    size = fields.number("size", 1, MAX_COUNTER)
    sha256 = fields.text("sha256", DIGEST)
    partition = fields.text("partition", _LABEL) if kind.has_partition else None
    disk = fields.number("disk", 0, MAX_COUNTER, -1) if kind.has_tree else -1
    forms = [
        _parse_encoded(entry, f"{what}, encoded {index}", size, number > 1 and kind.may_chain)
        for index, entry in enumerate(fields.take("encoded", list, []))
    ]
    if "member" in fields.found or "url" in fields.found:
        forms.append(Form(size, sha256, *fields.place()))
    if not forms:
        raise MpotaError(f"{what} has neither member nor url")
    fields.end()
    return Payload(name, size, sha256, tuple(forms), partition, disk if disk >= 0 else None)


def _parse_encoded(item: Any, what: str, content_size: int, may_chain: bool) -> Form:
    fields = _Fields(item, what)
    form = Form(
        fields.number("size", 1, MAX_COUNTER),
        fields.text("sha256", DIGEST),
        *fields.place(),
        encoding=fields.text("encoding", _ENCODING),
        base=fields.optional_text("from", DIGEST),
    )
    if may_chain and form.encoding in CHAINED:
        form = replace(form, chain=fields.text("chain", DIGEST))
        check_size(form.size, content_size if form.encoding == "chained" else None)
    fields.end()
    return form


def _compose_payload(payload: Payload) -> dict[str, Any]:
    document: dict[str, Any] = {"kind": payload.kind}
    document |= present(partition=payload.partition)
    document |= {"size": payload.size, "sha256": payload.sha256}
    document |= present(disk=payload.disk)
    encoded = []
    for form in payload.forms:
        place = present(member=form.member, url=form.url)
        if form.encoding is None:
            document |= place
        else:
            head = {"encoding": form.encoding} | present(**{"from": form.base}, chain=form.chain)
            encoded.append(head | {"size": form.size, "sha256": form.sha256} | place)
    return document | present(encoded=encoded or None)


def _from_simple(document: dict[str, Any]) -> Manifest:
    """``firmware``, ``sha``, ``length``: what micropython-esp32-ota's from_json() reads."""
    fields = _Fields(document, "manifest")
    size = fields.number("length", 1, MAX_COUNTER)
    sha256 = fields.text("sha", DIGEST)
    form = Form(size, sha256, url=fields.text("firmware", URL))
    return Manifest("firmware", "0", (Payload(APP, size, sha256, (form,)),))


def check_name(name: str) -> None:
    """Raises MpotaError for a name that no release can have."""
    if not NAME.pattern.fullmatch(name):
        raise MpotaError(f"a release cannot have the name '{name}': it must be {NAME.words}")


def check_version(version: str) -> None:
    """Raises MpotaError for a version that no release can have."""
    if not VERSION.pattern.fullmatch(version):
        raise MpotaError(
            f"a release cannot have the version '{version}': it must be {VERSION.words}"
        )


def version_key(version: str) -> tuple[tuple[int, ...], bool, str]:
    """Sorts versions: numbers as numbers, 2.1 as 2.1.0.0, and 2.1.0-rc1 before 2.1.0."""
    numbers, _, suffix = version.partition("-")
    parts = tuple(int(number) for number in numbers.split("."))
    return parts + (0,) * (4 - len(parts)), not suffix, suffix


class _Fields(Fields):
    """The fields of a manifest, and of what is in it."""

    def digests(self, key: str) -> tuple[str, ...]:
        values = self.take(key, list, [])
        good = all(isinstance(value, str) and DIGEST.pattern.fullmatch(value) for value in values)
        if not good or len(values) > MAX_KEYS or len(set(values)) < len(values):
            self.fail(key, values, f"{MAX_KEYS} different digests at most, each {DIGEST.words}")
        return tuple(values)

    def place(self) -> tuple[str | None, str | None]:
        """(member, url), one of them None."""
        member = self.optional_text("member", _MEMBER)
        url = self.optional_text("url", URL)
        if (member is None) == (url is None):
            raise MpotaError(f"{self.what} must have one of member and url")
        if member in ("manifest.json", "manifest.sig"):
            self.fail("member", member, "another name")
        return member, url
