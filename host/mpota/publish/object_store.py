"""Buckets: S3 and what speaks like it, Azure's, Google's, all by obstore, which is imported here.

Seen against S3 servers; ``az://`` and ``gs://`` are the same calls of obstore, and untried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mpota.errors import MpotaError, UsageError
from mpota.publish.credentials import check_google, find_aws, find_azure
from mpota.publish.store import Listed, Stored, Tag, check_path, check_size

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_DIGEST = "sha256"  # the name of an attribute: x-amz-meta-sha256, and the like
_FOREVER = "public, max-age=31536000, immutable"
_ASK_FIRST = "no-cache"
_MAX_RETRIES = 3
_RETRY_TIME = timedelta(seconds=60)
_CONNECT_TIME = timedelta(seconds=15)
_REQUEST_TIME = timedelta(minutes=10)  # for a payload over a slow line
_MAX_ERROR = 300  # characters of what a store says


class Bucket:
    """A folder of a bucket. The store itself decides between two who write at once."""

    def __init__(self, name: str, store: ObjectStore) -> None:
        self.name = name
        self._store = store

    def get(self, path: str, limit: int) -> Stored | None:
        import obstore

        with self._errors(path):
            try:
                answer = obstore.get(self._store, _key(path))
            except FileNotFoundError:
                return None
            check_size(self.name, path, answer.meta["size"], limit)
            tag = Tag(answer.meta["e_tag"], answer.meta["version"])
            return Stored(bytes(answer.bytes()), tag)

    def create(self, path: str, data: bytes) -> bool:
        return self._put(path, data, "create", _FOREVER)

    def replace(self, path: str, data: bytes, former: Tag | None) -> bool:
        mode: Any = "create" if former is None else _present(former)
        return self._put(path, data, mode, _ASK_FIRST)

    def holds(self, path: str, data: bytes) -> bool:
        import obstore

        with self._errors(path):
            try:
                answer = obstore.get(self._store, _key(path))
            except FileNotFoundError:
                return False
            if answer.meta["size"] != len(data):
                return False
            known = {str(key): value for key, value in answer.attributes.items()}.get(_DIGEST)
            if known is not None:
                return known == sha256(data).hexdigest()
            return bytes(answer.bytes()) == data

    def list(self, folder: str) -> Iterator[Listed]:
        import obstore

        prefix = f"{_key(folder)}/" if folder else None
        with self._errors(folder or "/"):
            found = obstore.list_with_delimiter(self._store, prefix)
        for meta in found["objects"]:
            yield Listed(meta["path"], meta["size"], meta["last_modified"])

    def delete(self, path: str) -> None:
        import obstore

        with self._errors(path):
            try:
                obstore.delete(self._store, _key(path))
            except FileNotFoundError:
                return

    def _put(self, path: str, data: bytes, mode: Any, cache: str) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        kind = "application/json" if path.endswith(".json") else "application/octet-stream"
        attributes: Any = {
            "Content-Type": kind,
            "Cache-Control": cache,
            _DIGEST: sha256(data).hexdigest(),
        }
        with self._errors(path):
            try:
                obstore.put(
                    self._store,
                    _key(path),
                    data,
                    attributes=attributes,
                    mode=mode,
                    use_multipart=False,
                )
            except (AlreadyExistsError, PreconditionError):
                return False
            except FileNotFoundError:
                if mode == "create":
                    raise UsageError(f"{self.name}: there is no such bucket") from None
                return False
        return True

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        try:
            yield
        except (PermissionDeniedError, UnauthenticatedError):
            raise UsageError(
                f"{self.name}: not allowed to reach '{path}'", "the credentials, and their rights"
            ) from None
        except (BaseError, FileNotFoundError, ValueError, OSError) as error:
            raise UsageError(f"{self.name}: '{path}': {_first_words(error)}") from None


def _key(path: str) -> str:
    return "/".join(check_path(path))


def _present(tag: Tag) -> dict[str, str]:
    found = {"e_tag": tag.etag, "version": tag.version}
    return {key: value for key, value in found.items() if value is not None}


def _first_words(error: Exception) -> str:
    text = " ".join(str(error).split("\n\n")[0].split())
    return text[:_MAX_ERROR] or type(error).__name__


def _s3(bucket: str, prefix: str | None) -> ObjectStore:
    from obstore.store import S3Store

    config: Any = find_aws()
    is_plain = config.get("endpoint", "").startswith("http://")
    return S3Store(bucket, prefix=prefix, config=config, **_client(is_plain))


def _azure(bucket: str, prefix: str | None) -> ObjectStore:
    from obstore.store import AzureStore

    config: Any = find_azure()
    return AzureStore(bucket, prefix=prefix, config=config, **_client())


def _google(bucket: str, prefix: str | None) -> ObjectStore:
    from obstore.store import GCSStore

    check_google()
    return GCSStore(bucket, prefix=prefix, **_client())


def _client(is_plain: bool = False) -> Any:
    return {
        "client_options": {
            "allow_http": is_plain,
            "connect_timeout": _CONNECT_TIME,
            "timeout": _REQUEST_TIME,
        },
        "retry_config": {"max_retries": _MAX_RETRIES, "retry_timeout": _RETRY_TIME},
    }


SCHEMES: dict[str, Callable[[str, str | None], ObjectStore]] = {
    "s3": _s3,
    "az": _azure,
    "gs": _google,
}


def open_bucket(target: str) -> Bucket:
    """The folder that ``s3://BUCKET/FOLDER`` means. Raises UsageError as `open_store`."""
    parts = urlsplit(target)
    if not parts.netloc or parts.query or parts.fragment or "@" in parts.netloc:
        raise UsageError(f"'{target}' is no bucket", f"{parts.scheme}://BUCKET/FOLDER")
    folder = "/".join(check_path(parts.path.strip("/")))
    try:
        import obstore.exceptions
    except ImportError:
        raise UsageError(
            f"{parts.scheme}:// needs obstore", "pip install 'mpota[stores]'"
        ) from None
    try:
        return Bucket(target, SCHEMES[parts.scheme](parts.netloc, folder or None))
    except (obstore.exceptions.BaseError, ValueError) as error:
        raise MpotaError(f"'{target}': {_first_words(error)}") from None
