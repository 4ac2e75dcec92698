"""A release in hawkBit: one software module with the bundle in it, and one distribution set.

All three have the release's name and version. Nothing is ever replaced: what is there is compared,
and what is missing is made, so that an interrupted run goes on, and a second one changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from mpota.errors import MpotaError
from mpota.formats.bundle import Bundle
from mpota.formats.manifest import Manifest
from mpota.hawkbit.answers import Answer, SetAnswer
from mpota.hawkbit.client import Client, ServerRefusedError, equals, segment
from mpota.hawkbit.rollouts import find_set

TYPE = "os"  # of module and set: a new tenant has this type of both
_UNFIT = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_NAME = 100  # characters of a file's name that devices can fetch: what hawkBit links
_CONFLICT = 409

# Is called with the bytes of the file that are sent.
Sent = Callable[[int], object]
# Is called for each piece: "there", "to send" or "sent"; what it is; its bytes, 0 if it has none.
Tell = Callable[[str, str, int], None]


@dataclass(frozen=True)
class BundleUpload:
    """A bundle as it is published."""

    manifest: Manifest
    data: bytes

    @classmethod
    def of(cls, bundle: Bundle, data: bytes) -> BundleUpload:
        return cls(bundle.manifest, data)

    @property
    def label(self) -> str:
        return f"{self.manifest.name}:{self.manifest.version}"

    @property
    def file(self) -> str:
        stem = _UNFIT.sub("-", f"{self.manifest.name}-{self.manifest.version}")
        return f"{stem[: _MAX_NAME - 7]}.bundle"

    @property
    def digest(self) -> str:
        return sha256(self.data).hexdigest()

    @property
    def metadata(self) -> dict[str, str]:
        """For people, and for filters of rollouts; boards read the manifest."""
        manifest = self.manifest
        found = {"chip": manifest.chip, "board": manifest.board, "counter": str(manifest.counter)}
        return {key: value for key, value in found.items() if value}


def publish(
    client: Client, piece: BundleUpload, tell: Tell, sent: Sent, *, dry_run: bool = False
) -> None:
    """Bring a release to the server, or say what is missing there.

    Raises MpotaError if there is another one of that name and version: a release never changes.
    """
    client.check_tenant()
    names = {"name": piece.manifest.name, "version": piece.manifest.version}
    wanted = find_set(client, **names)
    module = _find_module(client, names)
    missing = "to send" if dry_run else "sent"
    tell("there" if module is not None else missing, f"software module {piece.label}", 0)
    if module is None and not dry_run:
        module = _make_module(client, names)
    _put_artifact(client, module, piece, tell, sent, dry_run=dry_run)
    _put_metadata(client, module, piece, tell, dry_run=dry_run)
    is_whole = wanted is not None and module in wanted.modules
    tell("there" if is_whole else missing, f"distribution set {piece.label}", 0)
    if not is_whole and not dry_run and module is not None:
        _put_set(client, names, wanted, module)


def _find_module(client: Client, names: dict[str, str]) -> int | None:
    for found in client.pages("softwaremodules", q=equals(**names)):
        answer = Answer(found, "a software module")
        said = answer.text("name"), answer.text("version"), answer.text("type")
        if said == (names["name"], names["version"], TYPE):
            return answer.number("id")
    return None


def _make_module(client: Client, names: dict[str, str]) -> int:
    try:
        made = client.post("softwaremodules", [{"type": TYPE, **names}])
    except ServerRefusedError as error:
        found = _find_module(client, names) if error.status == _CONFLICT else None
        if found is None:
            raise
        return found
    return _first(client, made, "softwaremodules").number("id")


def _put_artifact(
    client: Client,
    module: int | None,
    piece: BundleUpload,
    tell: Tell,
    sent: Sent,
    *,
    dry_run: bool,
) -> None:
    path = f"softwaremodules/{module}/artifacts"
    if module is not None and _has_artifact(client, path, piece):
        tell("there", piece.file, len(piece.data))
        return
    if not dry_run:
        try:
            client.upload(path, piece.file, piece.data, sent, sha256sum=piece.digest)
        except ServerRefusedError as error:
            if error.status != _CONFLICT or not _has_artifact(client, path, piece):
                raise
    tell("to send" if dry_run else "sent", piece.file, len(piece.data))


def _has_artifact(client: Client, path: str, piece: BundleUpload) -> bool:
    """Raises MpotaError if the module has anything else: boards would not know what to take."""
    found = client.get(path)
    if not isinstance(found, list):
        raise client.nonsense(path, "a list of files")
    for one in found:
        answer = Answer(one, "an artifact")
        hashes = answer.inner("hashes")
        name = answer.text("providedFilename")
        if (name, hashes and hashes.text("sha256")) != (piece.file, piece.digest):
            raise MpotaError(
                f"{client.place.name}: the software module {piece.label} has another file, "
                f"'{name}'",
                "a release never changes: publish this one under another version",
            )
    return bool(found)


def _put_metadata(
    client: Client, module: int | None, piece: BundleUpload, tell: Tell, *, dry_run: bool
) -> None:
    path = f"softwaremodules/{module}/metadata"
    there = {} if module is None else _metadata(client, path)
    for key, value in piece.metadata.items():
        is_there = there.get(key) == value
        if not is_there and not dry_run:
            if key in there:
                client.put(f"{path}/{segment(key)}", {"value": value, "targetVisible": False})
            else:
                client.post(path, [{"key": key, "value": value, "targetVisible": False}])
        word = "there" if is_there else "to send" if dry_run else "sent"
        tell(word, f"metadata {key} = {value}", 0)


def _metadata(client: Client, path: str) -> dict[str, str]:
    found = (Answer(one, "metadata") for one in client.pages(path))
    return {answer.text("key"): answer.text("value") for answer in found}


def _put_set(client: Client, names: dict[str, str], wanted: SetAnswer | None, module: int) -> None:
    if wanted is None:
        body = [{"type": TYPE, **names, "modules": [{"id": module}]}]
        try:
            client.post("distributionsets", body)
            return
        except ServerRefusedError as error:
            wanted = find_set(client, **names) if error.status == _CONFLICT else None
            if wanted is None:
                raise
    if module not in wanted.modules:
        client.post(f"distributionsets/{wanted.id}/assignedSM", [{"id": module}])


def _first(client: Client, found: object, path: str) -> Answer:
    if not isinstance(found, list) or len(found) != 1:
        raise client.nonsense(path, "what was made")
    return Answer(found[0], "what was made")
