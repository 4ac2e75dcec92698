"""What a bundle brings, to look at: payloads, and the files in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpota.errors import MpotaError, UsageError
from mpota.firmware.firmware import read_app
from mpota.formats.bundle import MANIFEST_NAME, SIGNATURE_NAME, Bundle, decode, is_bundle
from mpota.formats.manifest import Payload
from mpota.formats.payloads import APP, FILES
from mpota.formats.tar import read_tree


def digest_of(payload: Payload, content: bytes | None) -> str:
    """What people know a payload by, in hex: an app by the digest that its image carries, which
    boards and `mpota show` tell as well; all else by its SHA-256.
    """
    if payload.kind == APP and content:
        digest = read_app(content, payload.kind).image.digest
        if digest is not None:
            return digest.hex()
    return payload.sha256


@dataclass(frozen=True)
class BundleContents:
    """``files`` are those that come for the board's file system, by their paths; ``digests`` what
    its payloads are known by, see `digest_of`."""

    bundle: Bundle
    files: Mapping[str, bytes]
    digests: tuple[str, ...]

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> BundleContents:
        """Raises MpotaError for what is no bundle, or damaged."""
        if not is_bundle(data):
            raise MpotaError(f"{name} is no bundle", f"mpota show {name} tells what it is")
        bundle = Bundle.from_bytes(data)
        contents = [_content(bundle, payload, name) for payload in bundle.manifest.payloads]
        files: dict[str, bytes] = {}
        for payload, content in zip(bundle.manifest.payloads, contents, strict=True):
            if payload.kind == FILES and content:
                files = {m.name: m.data for m in read_tree(content) if not m.is_directory}
        digests = map(digest_of, bundle.manifest.payloads, contents)
        return cls(bundle, files, tuple(digests))

    def read(self, name: str) -> bytes:
        """A file, or a member of the bundle. Raises UsageError if there is none of that name."""
        bundle = self.bundle
        members = {MANIFEST_NAME: bundle.manifest_bytes, **bundle.members}
        if bundle.signature is not None:
            members[SIGNATURE_NAME] = bundle.signature
        found = self.files.get(name.lstrip("/"), members.get(name))
        if found is None:
            raise UsageError(
                f"the bundle has no '{name}'", f"it has {', '.join([*self.files, *members])[:400]}"
            )
        return found

    def to_json(self) -> dict[str, Any]:
        manifest = self.bundle.manifest
        return {
            "name": manifest.name,
            "version": manifest.version,
            "chip": manifest.chip,
            "counter": manifest.counter,
            "signed": self.bundle.signature is not None,
            "payloads": [
                {
                    "kind": payload.kind,
                    "partition": payload.partition,
                    "size": payload.size,
                    "sha256": payload.sha256,
                    "digest": digest,
                    "forms": [
                        {"encoding": form.encoding, "member": form.member, "size": form.size}
                        for form in payload.forms
                    ],
                }
                for payload, digest in zip(manifest.payloads, self.digests, strict=True)
            ],
            "files": {name: len(data) for name, data in self.files.items()},
        }


def _content(bundle: Bundle, payload: Payload, name: str) -> bytes | None:
    """What a payload gives; None if only a board can decode it."""
    for form in reversed(payload.forms):
        if form.member:
            what = f"{name}: {form.member}"
            content = decode(form, payload, bundle.members[form.member], what)
            if content is not None:
                return content
    return None
