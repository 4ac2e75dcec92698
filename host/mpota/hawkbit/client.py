"""Requests to a server's Management API, and answers that are not believed before they are checked.

By the standard library: what is needed of HTTP is a request, its answer, and proxies as the
environment names them. Redirects are not followed, since credentials would go along.
"""

from __future__ import annotations

import io
import json
import secrets
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode
from urllib.request import HTTPRedirectHandler, Request, build_opener

from mpota.errors import MpotaError, UsageError
from mpota.hawkbit.place import HINT, Credentials, Place

PAGE = 500  # entries: the most that hawkBit gives (MgmtRestConstants)
MAX_ANSWER_SIZE = 16 << 20  # bytes: a page of targets has 1 to 2 KiB an entry
MAX_PAGES = 200  # of a list, which makes 100,000 entries
_MAX_WORDS = 1000  # characters of an error of the server's
_TIMEOUT_S = 60.0  # without a byte
_DEADLINE_S = 600.0  # for one answer, however it drips
_CHUNK = 65536
# HAL comes first: in plain JSON, links have another form.
_ACCEPT = "application/hal+json, application/json;q=0.5"
_AGAIN = "the same command again goes on where it stopped"


class ServerRefusedError(MpotaError):
    """The server does not do that. ``status``: of HTTP; ``code``: its own word, or ""."""

    def __init__(self, status: int, code: str, text: str, hint: str | None = None) -> None:
        super().__init__(text, hint)
        self.status = status
        self.code = code


class Client:
    """The Management API of one tenant. Each method raises ServerRefusedError for what the server
    refuses, MpotaError for an answer that makes no sense, UsageError where nobody answers.
    """

    def __init__(self, place: Place, credentials: Credentials) -> None:
        self.place = place
        self._credentials = credentials
        self._opener = build_opener(_NoRedirects)

    def check_tenant(self) -> None:
        """Raises MpotaError if who asks belongs to another tenant: the API names none, it is that
        of the user, and boards would wait at the other one.
        """
        found = self.get("userinfo")
        tenant = found.get("tenant") if isinstance(found, dict) else None
        if isinstance(tenant, str) and tenant.lower() != self.place.tenant.lower():
            raise MpotaError(
                f"{self.place.name}: who asks belongs to the tenant '{tenant[:40]}'",
                "another user, or another tenant in the URL",
            )

    def get(self, path: str, **query: object) -> Any:
        """The JSON at a path; None for no content."""
        return self._json("GET", path, query)

    def find(self, path: str, **query: object) -> Any:
        """As `get`; None also if there is nothing at the path (404)."""
        try:
            return self.get(path, **query)
        except ServerRefusedError as error:
            if error.status != 404:
                raise
            return None

    def pages(self, path: str, **query: object) -> Iterator[dict[str, Any]]:
        """The entries of a list, page after page."""
        at = 0
        for _ in range(MAX_PAGES):
            page = self.get(path, **{"limit": PAGE, **query, "offset": at})
            entries = page.get("content") if isinstance(page, dict) else None
            if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
                raise self.nonsense(path, "a page of a list")
            yield from entries
            at += len(entries)
            total = page.get("total")
            if not entries or not isinstance(total, int) or at >= total:
                return
        raise MpotaError(f"{self.place.name}: {path} has more than {MAX_PAGES} pages")

    def post(self, path: str, body: object = None) -> Any:
        return self._json("POST", path, {}, body)

    def put(self, path: str, body: object) -> Any:
        return self._json("PUT", path, {}, body)

    def upload(
        self, path: str, name: str, data: bytes, sent: Callable[[int], object], **query: object
    ) -> Any:
        """Send a file as a form does, in a part named "file"; ``sent`` is told how far it is."""
        mark = secrets.token_hex(16)
        head = (
            f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        body = b"".join((head.encode("ascii"), data, f"\r\n--{mark}--\r\n".encode()))
        kind = f"multipart/form-data; boundary={mark}"
        request = self._request("POST", path, query, body, kind)
        request.data = _Watched(body, lambda size: sent(min(size, len(data))))
        request.add_header("Content-Length", str(len(body)))  # which the other one takes away
        return self._answer(request)

    def nonsense(self, path: str, what: str) -> MpotaError:
        return MpotaError(
            f"{self.place.name}: the answer to {path} is not {what}", "is it a hawkBit server?"
        )

    def _json(
        self, method: str, path: str, query: Mapping[str, object], body: object = None
    ) -> Any:
        data = None if body is None else json.dumps(body).encode()
        return self._answer(self._request(method, path, query, data, "application/json"))

    def _request(
        self, method: str, path: str, query: Mapping[str, object], data: bytes | None, kind: str
    ) -> Request:
        url = f"{self.place.base}/rest/v1/{path}"
        if query:
            url += "?" + urlencode({key: str(value) for key, value in query.items()})
        headers = {"Authorization": self._credentials.header, "Accept": _ACCEPT}
        if data is not None:
            headers["Content-Type"] = kind
        return Request(url, data, headers, method=method)

    def _answer(self, request: Request) -> Any:
        path = request.selector.partition("/rest/v1/")[2].partition("?")[0]
        try:
            try:
                with self._opener.open(request, timeout=_TIMEOUT_S) as response:
                    data = self._read(response, path)
            except HTTPError as error:
                with error:
                    raise self._refusal(error, path) from None
        except (URLError, OSError, HTTPException) as error:
            hint = None if request.get_method() == "GET" else _AGAIN
            raise UsageError(f"{self.place.name}: {_words(error)}", hint) from None
        if not data:
            return None
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise self.nonsense(path, "JSON") from None

    def _read(self, response: HTTPResponse, path: str, limit: int = MAX_ANSWER_SIZE) -> bytes:
        """The whole body. Raises MpotaError if it is too large, or has no end."""
        found = bytearray()
        deadline = time.monotonic() + _DEADLINE_S
        while chunk := response.read1(_CHUNK):
            found += chunk
            if len(found) > limit:
                raise MpotaError(
                    f"{self.place.name}: the answer to {path} has more than {limit:,} bytes"
                )
            if time.monotonic() > deadline:
                raise MpotaError(f"{self.place.name}: the answer to {path} does not end")
        return bytes(found)

    def _refusal(self, error: HTTPError, path: str) -> MpotaError:
        status = error.code
        if status == 401:
            return ServerRefusedError(
                status, "", f"{self.place.name}: these credentials are not accepted (401)", HINT
            )
        if 300 <= status < 400:
            place = str(error.headers.get("Location", ""))[:_MAX_WORDS]
            return MpotaError(
                f"{self.place.name}: it leads to '{place}' ({status}), where credentials do not go",
                "give that address, if it is the right one",
            )
        code, words = _said(error)
        text = f"{self.place.name}: {path}: {words or error.reason or 'refused'} ({status})"
        return ServerRefusedError(status, code, text, _AGAIN if status >= 500 else None)


def segment(text: str) -> str:
    """A name as a part of a path."""
    return quote(text, safe="")


def equals(**fields: str) -> str:
    """The query for entries with these values: FIQL, as the API takes it in ``q``.

    ``*`` stands for anything there, and a backslash takes that from it.
    """
    return ";".join(f"{key}=={quoted(value)}" for key, value in fields.items())


def quoted(value: str) -> str:
    escaped = "".join(f"\\{c}" if c in "\\'*" else c for c in value)
    return f"'{escaped}'"


class _Watched(io.BytesIO):
    """A body that tells how much of it has been taken."""

    def __init__(self, data: bytes, taken: Callable[[int], object]) -> None:
        super().__init__(data)
        self._taken = taken

    def read(self, size: int | None = -1) -> bytes:
        found = super().read(size)
        self._taken(self.tell())
        return found


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _said(error: HTTPError) -> tuple[str, str]:
    """The server's own word for an error, and its words."""
    try:
        body = json.loads(error.read(_CHUNK))
        code, words = body.get("errorCode"), body.get("message")
    except (ValueError, RecursionError, AttributeError, OSError, HTTPException):
        return "", ""
    code = code if isinstance(code, str) else ""
    return code[:100], words[:_MAX_WORDS] if isinstance(words, str) else code[:100]


def _words(error: Exception) -> str:
    reason = error.reason if isinstance(error, URLError) else error
    if isinstance(reason, (TimeoutError, socket.timeout)):
        return f"no answer for {_TIMEOUT_S:.0f} s"
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {reason.verify_message} (SSL_CERT_FILE names CAs)"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return str(reason)[:_MAX_WORDS] or type(reason).__name__
