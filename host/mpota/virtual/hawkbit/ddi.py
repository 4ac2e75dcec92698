"""hawkBit's Direct Device Integration API over HTTP, on a `State`.

`add_routes` puts it into an application of aiohttp, beside whatever else that serves. The status
line has an empty reason, each 100th answer on a connection ends it, and errors of some routes are
chunked: as hawkBit has it. An answer to HTTP/1.0 says HTTP/1.0 here, there it says HTTP/1.1.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from weakref import WeakKeyDictionary

from aiohttp import ClientConnectionError, web

from mpota.virtual.hawkbit import device
from mpota.virtual.hawkbit.device import Feedback
from mpota.virtual.hawkbit.faults import Exchange, Fault, Faults
from mpota.virtual.hawkbit.state import Action, Artifact, Module, Refusal, State, Target

BASE = "/{tenant}/controller/v1/{id}"
_ANSWERS_A_CONNECTION = 100
_TYPES = ("application/hal+json", "application/json")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-XSS-Protection": "0",
    "Cache-Control": "no-cache, no-store, max-age=0, must-revalidate",
    "Pragma": "no-cache",
    "Expires": "0",
    "X-Frame-Options": "DENY",
}
_ONE_RANGE = re.compile(r"bytes=(\d*)-(\d*)$")
_PIECE = 65536
# What is known of a request while it is answered: what goes wrong, how many bytes its body took.
_FAULT = web.RequestKey("fault", Fault)
_SIZE = web.RequestKey("size", int)
_Handler = Callable[[web.Request, Target], Awaitable[web.StreamResponse]]


def add_routes(
    application: web.Application,
    state: State,
    faults: Faults | None = None,
    on_exchange: Callable[[Exchange], None] | None = None,
) -> None:
    """``on_exchange`` is told of each request of a device, when it has been answered."""
    ddi = _Ddi(state, faults if faults is not None else Faults(), on_exchange)
    for method, path, handler, is_strict in ddi.routes():
        application.router.add_route(method, BASE + path, ddi.serving(handler, is_strict))
    application.router.add_route("*", BASE + "/{rest:.*}", ddi.serving(ddi.unknown, True))


@dataclass(frozen=True)
class _Part:
    """The range of bytes of a file that is sent."""

    status: int
    start: int
    end: int


class _Ddi:
    def __init__(
        self, state: State, faults: Faults, on_exchange: Callable[[Exchange], None] | None
    ) -> None:
        self._state = state
        self._faults = faults
        self._on_exchange = on_exchange
        self._answers: WeakKeyDictionary[asyncio.BaseTransport, int] = WeakKeyDictionary()

    def routes(self) -> list[tuple[str, str, _Handler, bool]]:
        """Method, path, handler, and whether errors come with a chunked body."""
        action = "/{action}"
        module = "/softwaremodules/{module}/artifacts"
        return [
            ("GET", "", self._poll, False),
            ("PUT", "/configData", self._put_attributes, False),
            ("GET", "/deploymentBase" + action, self._get_deployment, False),
            ("POST", "/deploymentBase" + action + "/feedback", self._post_feedback, False),
            ("GET", "/installedBase" + action, self._get_installed, False),
            ("PUT", "/installedBase", self._put_installed, False),
            ("GET", "/cancelAction" + action, self._get_cancel, False),
            ("POST", "/cancelAction" + action + "/feedback", self._post_cancel, False),
            ("GET", "/confirmationBase", self._get_auto_confirm, False),
            ("POST", "/confirmationBase/activateAutoConfirm", self._activate, False),
            ("POST", "/confirmationBase/deactivateAutoConfirm", self._deactivate, False),
            ("GET", "/confirmationBase" + action, self._get_confirmation, False),
            ("POST", "/confirmationBase" + action + "/feedback", self._post_confirmation, False),
            ("GET", module, self._get_artifacts, True),
            ("GET", module + "/{file}", self._download, True),
            ("HEAD", module + "/{file}", self._download, True),
        ]

    # --- around each request

    def serving(
        self, handler: _Handler, is_strict: bool
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def serve(request: web.Request) -> web.StreamResponse:
            path = _path(request)
            fault = self._faults.take(request.method, path)
            if fault is not None:
                request[_FAULT] = fault
            body = await request.read()
            if fault is not None and fault.call is not None:
                fault.call()
            response = await self._answer(request, handler, is_strict, fault)
            is_silent = fault is not None and (fault.is_lost or fault.is_unheard)
            self._tell(request, path, 0 if is_silent else response.status, body)
            if is_silent and request.transport is not None:
                request.transport.abort()
            return response

        return serve

    async def _answer(
        self, request: web.Request, handler: _Handler, is_strict: bool, fault: Fault | None
    ) -> web.StreamResponse:
        if fault is not None and fault.is_unheard:
            return web.Response(status=500)
        if fault is not None and fault.status:
            response: web.StreamResponse = _response(fault.status, fault.body)
            response.headers.update(fault.headers)
        else:
            try:
                response = await handler(request, self._admit(request))
            except Refusal as refusal:
                response = _refused(request, refusal, is_strict)
        self._finish(request, response)
        return response

    def _finish(self, request: web.Request, response: web.StreamResponse) -> None:
        if response.prepared:
            return
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        if request.transport is not None:
            count = self._answers.get(request.transport, 0) + 1
            self._answers[request.transport] = count
            if count >= _ANSWERS_A_CONNECTION:
                response.force_close()
        if response.status == 400:
            response.force_close()

    def _tell(self, request: web.Request, path: str, status: int, body: bytes) -> None:
        if self._on_exchange is not None:
            self._on_exchange(
                Exchange(
                    request.match_info["id"], request.method, path, status,
                    request.headers.get("Authorization"), request.headers.get("Range"),
                    body, request.get(_SIZE, 0),
                )
            )  # fmt: skip

    def _admit(self, request: web.Request) -> Target:
        """The target that asks. Raises Refusal (400, 401, 404)."""
        state = self._state
        id = request.match_info["id"]
        if request.match_info["tenant"].lower() != state.tenant.lower():
            raise Refusal(401)
        target = state.targets.get(id)
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if self._is_gateway(scheme, token):
            if target is None and _path(request) == "/":
                target = state.add_target(id, created_by="CONTROLLER_PLUG_AND_PLAY")
            if target is None:
                raise Refusal(404)
            return target
        is_known = (
            target is not None
            and scheme == "TargetToken"
            and bool(state.config["authentication.targettoken.enabled"])
            and hmac.compare_digest(token.encode(), target.token.encode())
        )
        if target is None or not is_known:
            raise Refusal(401)
        return target

    def _is_gateway(self, scheme: str, token: str) -> bool:
        config = self._state.config
        return (
            scheme == "GatewayToken"
            and bool(config["authentication.gatewaytoken.enabled"])
            and hmac.compare_digest(
                token.encode(), str(config["authentication.gatewaytoken.key"]).encode()
            )
        )

    # --- polling

    async def _poll(self, request: web.Request, target: Target) -> web.StreamResponse:
        links = device.poll(self._state, target, request.remote)
        found: dict[str, Any] = {}
        for name, number in links.items():
            path = name if number is None else f"{name}/{number}"
            if name in ("deploymentBase", "confirmationBase") and number is not None:
                path += f"?c={_revision(self._state.actions[number])}"
            found[name] = {"href": f"{_base(request, target)}/{path}"}
        body: dict[str, Any] = {"config": {"polling": {"sleep": device.sleep(self._state)}}}
        if found:
            body["_links"] = found
        return _json(request, body)

    async def _put_attributes(self, request: web.Request, target: Target) -> web.StreamResponse:
        device.set_attributes(target, await _body(request))
        return _response(200)

    # --- deployments

    def _find(self, request: web.Request, target: Target) -> Action:
        return device.find(self._state, target, request.match_info["action"])

    async def _get_deployment(self, request: web.Request, target: Target) -> web.StreamResponse:
        action = self._find(request, target)
        device.retrieve(self._state, action)
        return self._deployment(request, action, "deployment")

    async def _get_installed(self, request: web.Request, target: Target) -> web.StreamResponse:
        action = self._find(request, target)
        device.check_installed(action)
        return self._deployment(request, action, "deployment")

    async def _get_confirmation(self, request: web.Request, target: Target) -> web.StreamResponse:
        action = self._find(request, target)
        if action.status != "wait_for_confirmation":
            raise Refusal(404)
        return self._deployment(request, action, "confirmation")

    def _deployment(self, request: web.Request, action: Action, word: str) -> web.Response:
        download, update = device.handling(self._state, action)
        what: dict[str, Any] = {"download": download, "update": update}
        if action.window is not None:
            what["maintenanceWindow"] = "available" if action.window else "unavailable"
        what["chunks"] = [
            _chunk(request, action.target, module, self._state.mirror)
            for module in action.set.modules
        ]
        body: dict[str, Any] = {"id": str(action.id), word: what}
        count = request.query.get("actionHistory", "0")
        if count.lstrip("-").isdecimal() and int(count):
            messages = action.messages[::-1]
            body["actionHistory"] = {
                "status": action.status.upper(),
                "messages": messages if int(count) < 0 else messages[: int(count)],
            }
        return _json(request, body)

    async def _post_feedback(self, request: web.Request, target: Target) -> web.StreamResponse:
        said = Feedback.from_json(await _body(request))
        device.feedback(self._state, self._find(request, target), said)
        return _response(200)

    async def _put_installed(self, request: web.Request, target: Target) -> web.StreamResponse:
        is_new = device.set_installed(self._state, target, await _body(request))
        return _response(201 if is_new else 200)

    # --- cancel and consent

    async def _get_cancel(self, request: web.Request, target: Target) -> web.StreamResponse:
        action = self._find(request, target)
        device.check_cancelling(action)
        id = str(action.id)
        return _json(request, {"id": id, "cancelAction": {"stopId": id}})

    async def _post_cancel(self, request: web.Request, target: Target) -> web.StreamResponse:
        said = Feedback.from_json(await _body(request))
        device.cancel_feedback(self._state, self._find(request, target), said)
        return _response(200)

    async def _get_auto_confirm(self, request: web.Request, target: Target) -> web.StreamResponse:
        return _json(request, {"autoConfirm": {"active": target.auto_confirm}, "_links": {}})

    async def _activate(self, request: web.Request, target: Target) -> web.StreamResponse:
        device.set_auto_confirm(self._state, target, True)
        return _response(200)

    async def _deactivate(self, request: web.Request, target: Target) -> web.StreamResponse:
        device.set_auto_confirm(self._state, target, False)
        return _response(200)

    async def _post_confirmation(self, request: web.Request, target: Target) -> web.StreamResponse:
        device.confirm(self._state, self._find(request, target), await _body(request))
        return _response(200)

    # --- artifacts

    def _module(self, request: web.Request, target: Target) -> Module:
        """The module that the target may have now. Raises Refusal (400, 404)."""
        number = request.match_info["module"]
        if not number.isdecimal():
            raise Refusal(400)
        found = self._state.find_module(target, int(number))
        if found is None:
            raise Refusal(404, "it is not for this device, or not now")
        return found

    async def _get_artifacts(self, request: web.Request, target: Target) -> web.StreamResponse:
        number = request.match_info["module"]
        installed = target.installed.modules if target.installed else []
        for module in installed:
            if str(module.id) == number:
                break
        else:
            module = self._module(request, target)
        response = _json(request, _artifacts(request, target, module, self._state.mirror))
        return _chunked(request, response)

    async def _download(self, request: web.Request, target: Target) -> web.StreamResponse:
        name = request.match_info["file"]
        if ".." in name or any(letter in name for letter in "/\\%"):
            raise Refusal(400)
        module = self._module(request, target)
        is_sum = name.endswith(".MD5SUM")
        artifact = module.artifacts.get(name.removesuffix(".MD5SUM"))
        if artifact is None:
            return _response(404)
        wanted = request.headers.get("If-Match", artifact.hashes["sha1"])
        if wanted not in (artifact.hashes["sha1"], "*"):
            return _response(412)
        if "Range" not in request.headers or is_sum:
            device.note_download(self._state, target, module.id, name)
        if is_sum:
            text = f"{artifact.hashes['md5']}  {artifact.filename}"
            return _response(200, text.encode(), "text/plain")
        return await self._send(request, artifact)

    async def _send(self, request: web.Request, artifact: Artifact) -> web.StreamResponse:
        size = len(artifact.data)
        etag = f'"{artifact.hashes["sha1"]}"'
        part = _part(request, size, etag)
        headers = {"Accept-Ranges": "bytes", "ETag": etag}
        if part.status == 416:
            response = _response(416)
            response.headers["Content-Range"] = f"bytes */{size}"
            return response
        if part.status == 206:
            headers["Content-Range"] = f"bytes {part.start}-{part.end - 1}/{size}"
        headers["Content-Disposition"] = f"attachment;filename={artifact.filename}"
        headers["Content-Length"] = str(part.end - part.start)
        stream = web.StreamResponse(status=part.status, reason="", headers={**headers, **_HEADERS})
        stream.content_type = "application/octet-stream"
        self._finish(request, stream)
        # A device that hangs up amid its answer has asked all the same.
        with contextlib.suppress(ClientConnectionError, ConnectionError):
            await stream.prepare(request)
            if request.method != "HEAD":
                data = memoryview(artifact.data)[part.start : part.end]
                await self._send_body(request, stream, data)
        return stream

    async def _send_body(
        self, request: web.Request, stream: web.StreamResponse, data: memoryview
    ) -> None:
        fault = request.get(_FAULT)
        is_cut = fault is not None and fault.cut is not None and fault.cut < len(data)
        if is_cut:
            assert fault is not None
            data = data[: fault.cut]
        request[_SIZE] = 0
        for at in range(0, len(data), _PIECE):
            piece = data[at : at + _PIECE]
            await stream.write(piece)
            request[_SIZE] += len(piece)
        if is_cut and request.transport is not None:
            request.transport.close()

    async def unknown(self, request: web.Request, target: Target) -> web.StreamResponse:
        raise Refusal(404, "no such resource")


# --- pieces of answers


def _path(request: web.Request) -> str:
    """What follows the controllerId."""
    raw = request.rel_url.raw_path_qs
    return "/" + "/".join(raw.split("/")[5:])


def _base(request: web.Request, target: Target) -> str:
    """All links are absolute, by what the request says of the server."""
    root = f"{request.scheme}://{request.host}"
    return f"{root}/{request.match_info['tenant']}/controller/v1/{quote(target.id, safe='')}"


def _revision(action: Action) -> int:
    """A number that changes with each change of the action."""
    seen = (action.status, action.force_type, len(action.entries))
    return int.from_bytes(hashlib.sha1(repr(seen).encode()).digest()[:4], "big", signed=True)


def _chunk(request: web.Request, target: Target, module: Module, mirror: str) -> dict[str, Any]:
    part = {"application": "bApp", "runtime": "jvm"}.get(module.type, module.type)
    chunk: dict[str, Any] = {"part": part, "name": module.name, "version": module.version}
    if module.encrypted:
        chunk["encrypted"] = True
    chunk["artifacts"] = _artifacts(request, target, module, mirror)
    seen = [{"key": key, "value": value} for key, value, is_seen in module.metadata if is_seen]
    if seen:
        chunk["metadata"] = seen
    return chunk


def _artifacts(
    request: web.Request, target: Target, module: Module, mirror: str
) -> list[dict[str, Any]]:
    place = f"{_base(request, target)}/softwaremodules/{module.id}/artifacts"
    found = []
    for artifact in module.artifacts.values():
        name = quote(artifact.filename, safe="")
        href = f"{place}/{name}"
        links = {"download-http": {"href": href}, "md5sum-http": {"href": f"{href}.MD5SUM"}}
        if mirror:
            links = {"download": {"href": f"{mirror}/{name}"}}
        found.append(
            {
                "filename": artifact.filename,
                "size": len(artifact.data),
                "hashes": artifact.hashes,
                "_links": links,
            }
        )
    return found


def _part(request: web.Request, size: int, etag: str) -> _Part:
    """The range that a request asks for; the whole file if it asks for several."""
    asked = _ONE_RANGE.match(request.headers.get("Range", ""))
    if asked is None or request.headers.get("If-Range", etag) != etag:
        return _Part(200, 0, size)
    first, last = asked.groups()
    if not first:
        return _Part(206, max(0, size - int(last or 0)), size)
    start, end = int(first), min(int(last or size) + 1, size)
    if start >= size or start >= end:
        return _Part(416, 0, 0)
    return _Part(206, start, end)


async def _body(request: web.Request) -> object:
    """Raises Refusal (400, 415)."""
    if request.content_type != "application/json":
        raise Refusal(415, f"Content-Type '{request.content_type}' is not supported")
    try:
        return json.loads(await request.read())
    except (ValueError, RecursionError):
        raise Refusal(400, "the body is no JSON") from None


def _response(status: int, body: bytes = b"", content_type: str | None = None) -> web.Response:
    return web.Response(status=status, reason="", body=body, content_type=content_type)


def _json(request: web.Request, body: object) -> web.Response:
    data = json.dumps(body, separators=(",", ":")).encode()
    etag = f'"0{hashlib.md5(data).hexdigest()}"'
    if request.headers.get("If-None-Match") == etag:
        response = _response(304)
    else:
        accepted = request.headers.get("Accept", _TYPES[0]).split(",")[0].split(";")[0].strip()
        response = _response(200, data, accepted if accepted in _TYPES else _TYPES[0])
        request[_SIZE] = len(data)
    response.headers["ETag"] = etag
    return response


def _refused(request: web.Request, refusal: Refusal, is_strict: bool) -> web.Response:
    """Most errors have no body; those that a developer meets have one, chunked."""
    if refusal.status == 415 or (is_strict and refusal.status != 401):
        text = {
            "errorCode": "hawkbit.server.error",
            "exceptionClass": "org.eclipse.hawkbit.repository.exception",
            "message": str(refusal),
        }
        data = json.dumps(text).encode()
        return _chunked(request, _response(refusal.status, data, "application/json"))
    return _response(refusal.status)


def _chunked(request: web.Request, response: web.Response) -> web.Response:
    if request.version >= (1, 1) and response.status != 304:
        response.enable_chunked_encoding()
    return response
